#!/usr/bin/env bash
# One machine's share of a run over several: starts COMMAND (accelerate launch …) and does what it is told on standard
# input. launch_hostfile.sh and finetune.slurm start it on every machine and keep that input open.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: node.sh COMMAND [ARGUMENT…] < CONTROL

Starts COMMAND, which starts the training processes, and reads CONTROL:
  stop            SIGTERM to the training processes alone, so that they save a checkpoint and end; COMMAND waits for them
  end of input    SIGTERM to COMMAND, which ends the training processes at once: whoever held the input is gone
SIGTERM to node.sh itself is the same as stop, SIGINT and SIGHUP the same as the end of input.
Leaves with the exit code of COMMAND.
TEXT
}

if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
    usage
    [[ $# -gt 0 ]]
    exit
fi
if ! command -v "$1" > /dev/null; then
    echo "node.sh on $(hostname): no command $1; the environment has to lie at the same path on every machine" >&2
    exit 127
fi
if ! command -v pkill > /dev/null; then
    echo "node.sh on $(hostname): no command pkill; install procps" >&2
    exit 127
fi

# torch's launcher kills what is left of its processes 30 seconds after a SIGTERM, in the middle of a large checkpoint.
# Newer versions can be told to wait longer; with others, `stop` alone leaves the processes their time.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}

# A session of its own: a signal to node.sh's process group must not reach COMMAND, which would answer it with the above.
setsid "$@" < /dev/null &
command=$!

caught=
stop() {
    caught=1
    pkill -TERM --parent "$command" || true
}
end() {
    caught=1
    kill -TERM "$command" 2> /dev/null || true
}
trap stop TERM
trap end INT HUP

exec 3<&0
{
    while read -r word; do
        case $word in
            stop) stop ;;
            *) echo "node.sh: $word is no command; stop is the only one" >&2 ;;
        esac
    done
    end
} <&3 &
listener=$!
exec 3<&- < /dev/null

# A trapped signal ends `wait` before its time, with a status of its own. COMMAND may be gone by then; its status is kept
# for the next `wait`, and for one alone (127 after that).
code=0
wait "$command" || code=$?
while [[ -n $caught ]]; do
    caught=
    again=0
    wait "$command" || again=$?
    [[ $again -eq 127 ]] || code=$again
done
kill "$listener" 2> /dev/null || true
exit "$code"
