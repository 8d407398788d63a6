#!/usr/bin/env bash
# The whole study: several seeds of fine-tuning with cross-entropy (ce) and with matrix cross-entropy beside it (mce), each
# evaluated on GSM8K and MATH, compared, and shown as a page. The same command goes on where it was stopped.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")

usage() {
    cat <<'TEXT'
usage: recipes/reproduce_gsm8k.sh [OPTION…] [-- SETTING…]

Fine-tunes Llemma-7B on MetaMathQA, 3 seeds × {CE, CE + MCE}, evaluates all six on GSM8K and MATH, and compares them.
On 8 GPUs of 80 GB this is about six times a 7B fine-tune of 3 epochs over 395,000 short examples; begin with --plan.

  --output DIR        where everything goes (default: runs/study, with --toy runs/study-demo)
  --seeds "1 2 3"     the training seeds; the comparison needs three or more to say anything about other seeds
  --train_config FILE the engine for training (default: recipes/accelerate/zero3.yaml)
  --eval_config FILE  the launch for evaluation, one whole model on each GPU (default: recipes/accelerate/ddp.yaml)
  --num_processes N   GPUs, where it is not the 8 of these files
  --batch_size N      questions at a time on each GPU (default: 64)
  --toy               the same steps in small, on made-up arithmetic and two CPU cores: minutes, no GPU, no network
  --plan              print the commands and run none
  -h, --help          this text

What follows -- are settings of both trainings, such as --total_batch_size 64 or --max_steps 500.

Leaves DIR/seedN/{ce,mce} (models), each with gsm8k/ and math/ (answers), DIR/{gsm8k,math}.{txt,json} (comparison) and
DIR/report/index.html. Exit code: that of the step that failed; 2 for what is wrong here.
TEXT
}

fail() {
    echo "reproduce_gsm8k.sh: $*" >&2
    exit 2
}

output='' seeds="1 2 3" train_config=$here/accelerate/zero3.yaml eval_config=$here/accelerate/ddp.yaml
processes='' batch_size=64 toy='' plan=''
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
        --toy) toy=1 ;;
        --plan) plan=1 ;;
        --output | --seeds | --train_config | --eval_config | --num_processes | --batch_size)
            [[ $# -ge 2 ]] || fail "$1 needs a value"
            case $1 in
                --output) output=$2 ;;
                --seeds) seeds=$2 ;;
                --train_config) train_config=$2 ;;
                --eval_config) eval_config=$2 ;;
                --num_processes) processes=$2 ;;
                --batch_size) batch_size=$2 ;;
            esac
            shift
            ;;
        *) fail "unknown option $1; see --help (settings of the trainings follow --)" ;;
    esac
    shift
done
settings=("$@")

[[ $seeds =~ ^[0-9]+(\ +[0-9]+)*$ ]] || fail "--seeds must be numbers with spaces between them, got '$seeds'"
[[ -z $(tr -s ' ' '\n' <<<"$seeds" | sort | uniq -d) ]] || fail "--seeds names a seed twice: '$seeds'"
[[ $batch_size =~ ^[1-9][0-9]*$ ]] || fail "--batch_size must be a positive number, got '$batch_size'"
[[ -z $processes || $processes =~ ^[1-9][0-9]*$ ]] || fail "--num_processes must be a positive number, got '$processes'"
python=${PYTHON:-python}
command -v "$python" >/dev/null || fail "there is no $python; activate the environment, or set PYTHON"
"$python" -c 'import mce_llm' 2>/dev/null || fail "$python does not have mce-llm; install it there, or set PYTHON"
launch=("$python" -m accelerate.commands.launch)

if [[ -n $toy ]]; then
    output=${output:-runs/study-demo}
    [[ -z $processes || $processes == 1 ]] || fail "--toy runs on one process"
    train_launch=("${launch[@]}" --cpu --num_processes=1 --num_machines=1 --mixed_precision=no --dynamo_backend=no)
    eval_launch=("${train_launch[@]}")
    recipe=$here/quickstart
    task_options() { # NAME: the questions, and how they are asked
        echo --data "$output/data/$1.jsonl" --prompt plain --max_new_tokens 64 --batch_size 100
    }
    export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
else
    output=${output:-runs/study}
    for file in "$train_config" "$eval_config"; do
        [[ -f $file ]] || fail "$file: no such file"
    done
    train_launch=("${launch[@]}" --config_file "$train_config" ${processes:+--num_processes "$processes"})
    eval_launch=("${launch[@]}" --config_file "$eval_config" ${processes:+--num_processes "$processes"})
    recipe=$here/llemma7b_metamath
    task_options() {
        echo --data "$1" --prompt metamath --dtype bfloat16 --batch_size "$batch_size"
    }
fi

step() { # TITLE COMMAND…: runs it, or says how to go on
    local title=$1
    shift
    echo "== $title"
    if [[ -n $plan ]]; then
        printf '   %q' "$@" | sed 's/^   //; s/   / /g'
        echo
        return
    fi
    "$@" && return
    local code=$?
    echo "reproduce_gsm8k.sh: '$title' ended with exit code $code; the same command goes on from there" >&2
    exit "$code"
}

train() { # NAME CONFIG SETTING…: one run of the recipe, unless it is finished
    local folder=$1
    shift
    if [[ -f $folder/train_results.json && -z $plan ]]; then
        echo "== train $folder: finished before"
        return
    fi
    step "train $folder" "${train_launch[@]}" "$here/finetune.py" --output_dir "$folder" "$@"
}

[[ -n $plan ]] || mkdir -p "$output"
extra=()
if [[ -n $toy ]]; then
    [[ -f $output/data/math.jsonl ]] || step "data" "$python" "$here/toy_study.py" "$output/data"
    train "$output/base" --config "$here/quickstart_pretrain.yaml" --tokenizer_name_or_path "$output/data/tokenizer" \
        --dataset "$output/data/pretrain.jsonl" "${settings[@]}"
    extra=(--model_name_or_path "$output/base" --dataset "$output/data/train.jsonl"
        --eval_dataset "$output/data/validation.jsonl")
fi

for seed in $seeds; do
    for arm in ce mce; do
        train "$output/seed$seed/$arm" --config "${recipe}_$arm.yaml" --seed "$seed" "${extra[@]}" "${settings[@]}"
    done
done
for task in gsm8k math; do
    script=$root/eval/gsm8k.py
    [[ $task == gsm8k ]] || script=$root/eval/hendrycks_math.py
    pairs=()
    for seed in $seeds; do
        for arm in ce mce; do
            folder=$output/seed$seed/$arm
            # shellcheck disable=SC2046  # the options are words
            step "$task $folder" "${eval_launch[@]}" "$script" --model "$folder" --output "$folder/$task" \
                $(task_options "$task")
            pairs+=("$folder/$task")
        done
    done
    step "compare on $task (A: CE, B: CE + MCE)" "$python" -m mce_llm compare "${pairs[@]}" --output "$output/$task.json"
    [[ -n $plan ]] || "$python" -m mce_llm compare "${pairs[@]}" >"$output/$task.txt"
done
runs=()
for seed in $seeds; do
    runs+=("$output/seed$seed/ce" "$output/seed$seed/mce")
done
step "report" "$python" -m mce_llm report "${runs[@]}" --output "$output/report"
