#!/usr/bin/env bash
# Starts one training run on all the machines of a hostfile, over ssh: `accelerate launch` once on each. The same for
# DDP, FSDP2 and DeepSpeed.
set -euo pipefail

SECONDS_TO_END=60
node=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/node.sh

usage() {
    cat <<'TEXT'
usage: recipes/cluster/launch_hostfile.sh --hostfile FILE --config_file FILE [OPTION…] -- SCRIPT [ARGUMENT…]

  recipes/cluster/launch_hostfile.sh --hostfile hosts --config_file recipes/accelerate/zero3.yaml -- \
    recipes/finetune.py --config recipes/llemma7b_metamath_mce.yaml

Run it on a machine that reaches all of them by ssh without a password; it may be one of them. The folder where you are and
the Python environment have to lie at the same path on every machine, and output_dir has to be one that all of them share.

  --hostfile FILE           a line for each machine, `HOST slots=GPUS`; as many slots on each; # begins a comment
  --config_file FILE        the engine: one of recipes/accelerate/*.yaml
  --main_process_ip HOST    address of the first machine as the others see it (default: its name in the hostfile)
  --main_process_port PORT  a port that is free there (default: 29500)
  --export NAME             pass this environment variable on; may be repeated. Passed on in any case: NCCL_*, GLOO_*,
                            TORCH_*, PATH, LD_LIBRARY_PATH, PYTHONPATH, OMP_NUM_THREADS, DS_ACCELERATOR, HF_HOME,
                            HF_HUB_CACHE, HF_HUB_OFFLINE. They show in the process list: no tokens; `hf auth login`
                            keeps those in files
  --ssh COMMAND             how to reach a machine (default: "ssh -o BatchMode=yes -o ConnectTimeout=15")

What the machines print comes out here, each line behind the machine's name.
One machine that fails ends the run on all of them. Ctrl-C ends it at once. SIGTERM lets every process save a checkpoint
first. The same command then goes on from the last complete checkpoint.
Exit code: that of the first machine that failed; 2 for what is wrong here; 130 after Ctrl-C.
TEXT
}

fail() {
    echo "launch_hostfile.sh: $*" >&2
    exit 2
}

hostfile='' config='' main_ip='' port=29500
ssh_command="ssh -o BatchMode=yes -o ConnectTimeout=15"
exported=(LD_LIBRARY_PATH PYTHONPATH OMP_NUM_THREADS DS_ACCELERATOR HF_HOME HF_HUB_CACHE HF_HUB_OFFLINE)
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --)
            shift
            break
            ;;
        --hostfile | --config_file | --main_process_ip | --main_process_port | --export | --ssh)
            [[ $# -ge 2 ]] || fail "$1 needs a value"
            case $1 in
                --hostfile) hostfile=$2 ;;
                --config_file) config=$2 ;;
                --main_process_ip) main_ip=$2 ;;
                --main_process_port) port=$2 ;;
                --export) exported+=("$2") ;;
                --ssh) ssh_command=$2 ;;
            esac
            shift 2
            ;;
        *) fail "unknown option $1; options of the script stand after --, and --help lists the others" ;;
    esac
done

# 1. What was asked for; all problems at once.
problems=()
[[ -n $hostfile ]] || problems+=("--hostfile is missing")
[[ -z $hostfile || -r $hostfile ]] || problems+=("no hostfile $hostfile")
[[ -n $config ]] || problems+=("--config_file is missing: one of recipes/accelerate/*.yaml")
[[ -z $config || -r $config ]] || problems+=("no file $config")
[[ $port =~ ^[0-9]+$ && $port -ge 1 && $port -le 65535 ]] ||
    problems+=("--main_process_port must be a number from 1 to 65535, got $port")
[[ $# -gt 0 ]] || problems+=("no script to run: -- recipes/finetune.py --config … comes last")
[[ $# -eq 0 || -r $1 ]] || problems+=("no script $1 in $PWD")
for name in "${exported[@]}"; do
    [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || problems+=("--export $name is no name of a variable")
done
read -ra ssh_words <<< "$ssh_command"
command -v "${ssh_words[0]:-}" > /dev/null || problems+=("no command ${ssh_words[0]:-}: install an ssh client, or see --ssh")
accelerate=$(command -v accelerate) || problems+=("no command accelerate: activate the environment first")

hosts=() slots=''
if [[ -n $hostfile && -r $hostfile ]]; then
    number=0
    while IFS= read -r line || [[ -n $line ]]; do
        number=$((number + 1))
        line=${line%%#*}
        [[ $line =~ [^[:space:]] ]] || continue
        if [[ ! $line =~ ^[[:space:]]*([A-Za-z0-9_.:@-]+)[[:space:]]+slots=([0-9]+)[[:space:]]*$ ]]; then
            problems+=("$hostfile, line $number: expected \`HOST slots=GPUS\`, got \`$line\`")
            continue
        fi
        host=${BASH_REMATCH[1]} count=$((10#${BASH_REMATCH[2]}))
        [[ $host != -* ]] || problems+=("$hostfile, line $number: no host is called $host")
        [[ " ${hosts[*]} " != *" $host "* ]] || problems+=("$hostfile, line $number: $host is listed twice")
        [[ $count -gt 0 ]] || problems+=("$hostfile, line $number: $host has no slots")
        [[ ${slots:=$count} -eq $count ]] ||
            problems+=("$hostfile, line $number: $host has $count slots, ${hosts[0]} has $slots; as many on each, please")
        hosts+=("$host")
    done < "$hostfile"
    [[ $number -gt 0 && (${#hosts[@]} -gt 0 || ${#problems[@]} -gt 0) ]] || problems+=("$hostfile lists no machine")
fi
if [[ ${#problems[@]} -gt 0 ]]; then
    printf 'launch_hostfile.sh: %s\n' "${problems[@]}" >&2
    exit 2
fi
if [[ -z $main_ip ]]; then
    main_ip=${hosts[0]##*@}
    if [[ ${#hosts[@]} -gt 1 && $main_ip =~ ^(localhost|127\..*)$ ]]; then
        fail "the other machines cannot reach the first one as $main_ip; give --main_process_ip"
    fi
fi

# 2. One ssh for each machine. Its standard input stays open here: through it node.sh is told to stop, and its end, also
# that of a lost connection, ends the processes on the other side.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
script=("$@")
environment=("PATH=$PATH")
while IFS= read -r name; do
    if [[ " ${exported[*]} " == *" $name "* || $name =~ ^(NCCL|GLOO|TORCH)_ ]]; then
        environment+=("$name=${!name}")
    fi
done < <(compgen -e)

run_on() { # RANK: the machine's share of the run; its exit code goes to a file
    local rank=$1 control code=0
    for control in "${controls[@]}"; do
        exec {control}>&- # held by the launcher alone, so that they end with it
    done
    local words=(env "${environment[@]}" bash "$node" "$accelerate" launch
        --config_file "$config" --num_machines "${#hosts[@]}" --machine_rank "$rank"
        --num_processes $((${#hosts[@]} * slots)) --main_process_ip "$main_ip" --main_process_port "$port"
        "${script[@]}")
    "${ssh_words[@]}" "${hosts[rank]}" "cd $(printf %q "$PWD") && exec $(printf '%q ' "${words[@]}")" \
        < "$folder/control-$rank" 2>&1 | sed -u "s|^|[${hosts[rank]}] |" || code=$?
    echo "$code" > "$folder/code-$rank"
}

controls=() processes=()
for rank in "${!hosts[@]}"; do
    mkfifo "$folder/control-$rank"
    exec {control}<> "$folder/control-$rank"
    controls+=("$control")
    run_on "$rank" &
    processes+=($!)
done

# 3. Wait for all; the first failure, or Ctrl-C, ends the others.
code=0 ended='' killer=''
# shellcheck disable=SC2329 # a trap calls it
stop_all() {
    local control
    for control in "${controls[@]}"; do
        [[ -n $ended ]] || echo stop >&"$control"
    done
}
end_all() {
    local control
    [[ -z $ended ]] || return 0
    ended=yes
    for control in "${controls[@]}"; do
        exec {control}>&-
    done
    # A machine that does not answer any more does not hold up the others.
    (sleep "$SECONDS_TO_END" && kill "${processes[@]}") < /dev/null > /dev/null 2>&1 &
    killer=$!
    disown
}
trap stop_all TERM
trap 'code=130; end_all' INT HUP

declare -A seen=()
while [[ ${#seen[@]} -lt ${#hosts[@]} ]]; do
    wait -n && status=0 || status=$?
    for rank in "${!hosts[@]}"; do
        [[ -z ${seen[$rank]:-} && -s $folder/code-$rank ]] || continue
        seen[$rank]=$(< "$folder/code-$rank")
        if [[ ${seen[$rank]} -ne 0 ]]; then
            [[ -n $ended ]] || echo "launch_hostfile.sh: ${hosts[rank]} failed with exit code ${seen[$rank]}" >&2
            [[ $code -ne 0 ]] || code=${seen[$rank]}
            end_all
        fi
    done
    if [[ $status -eq 127 && ${#seen[@]} -lt ${#hosts[@]} ]]; then # killed before they could say why
        [[ $code -ne 0 ]] || code=1
        break
    fi
done
[[ -z $killer ]] || kill "$killer" 2> /dev/null || true
exit "$code"
