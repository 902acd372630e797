# Sourced by train_and_test.sh: train_folds OPTIONS [arguments of train.py] trains the folds of a run on GPUS GPUs.
# Folds go side by side, each on GPUS / folds of them (torchrun, where that is more than one), or on one where there are
# more folds than GPUs; then they take turns.
train_folds() {
    local options=$1 folds each wave number first gpus pid status=0
    shift
    IFS=, read -ra gpus <<< "${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((GPUS - 1)))}"
    if [ "${#gpus[@]}" -lt "$GPUS" ]; then
        echo "error: GPUS=$GPUS, but CUDA_VISIBLE_DEVICES names ${#gpus[@]}" >&2
        return 2
    fi
    folds=$(python - --path_opt "$options" "$@" << 'END'
from option import load_options
from utils import Parser, run_command

def main():
    parser = Parser()
    parser.add_options()
    arguments, _ = parser.parse_known_args()
    k_fold = load_options(arguments.path_opt, arguments.set).k_fold
    print(*range(k_fold.current_num, k_fold.nums))

run_command(main)
END
    ) || return
    read -ra folds <<< "$folds"
    each=$((GPUS / ${#folds[@]}))
    each=$((each > 1 ? each : 1))
    wave=$((GPUS / each))
    # what runs in the background does not hear Ctrl-C, and is told to stop and save
    trap 'kill -TERM $(jobs -p) 2> /dev/null' INT TERM
    for ((first = 0; first < ${#folds[@]} && status == 0; first += wave)); do
        local running=()
        for number in "${folds[@]:first:wave}"; do
            local place=$((${#running[@]} * each))
            local mine=("${gpus[@]:place:each}")
            echo "fold $number on GPU ${mine[*]}"
            CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${mine[*]}") \
                one_fold "$each" --path_opt "$options" --fold "$number" --resume "$@" &
            running+=($!)
        done
        for pid in "${running[@]}"; do
            while :; do
                wait "$pid" && break
                kill -0 "$pid" 2> /dev/null && continue  # a signal ended the waiting, not the fold
                wait "$pid" || status=$?
                break
            done
        done
    done
    trap - INT TERM
    return "$status"
}

one_fold() {
    local each=$1
    shift
    if [ "$each" -gt 1 ]; then
        exec torchrun --standalone --nproc_per_node "$each" train.py "$@"
    fi
    exec python train.py "$@"
}
