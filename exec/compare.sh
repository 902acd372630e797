#!/usr/bin/env bash
# Which model is better, and is it more than luck? Trains and scores every model with every seed, one table at the end.
#   bash exec/compare.sh UCM GaLR AMFMN VSEPP --seeds 5 [--set KEY=VALUE ...] [--device cpu]
#   bash exec/compare.sh UCM GaLR GaLR:dataset.local_path=zeros AMFMN:model.cross_attention.att_type=fusion_att --seeds 3
# A model is the name of an option file, option/UCM/UCM_MODEL.yaml, and after a colon its changes, separated by commas.
# --set goes to all. Run again, it trains what is missing and goes on where it was stopped. Runs: checkpoint/UCM_GaLR_s0,
# checkpoint/UCM_GaLR-local_path-zeros_s0 and so on; the table: checkpoint/UCM_compare/. More seeds later add to the first.
usage() {
    echo "error: $1: bash exec/compare.sh UCM GaLR AMFMN [--seeds 5] [--set KEY=VALUE ...]" >&2
    exit 2
}
MODELS=() OTHERS=() LABELS=() SEEDS=1
[ $# -gt 0 ] && [[ $1 != -* ]] || usage "name a data set"
NAME=$1
shift
while [ $# -gt 0 ] && [[ $1 != -* ]]; do
    MODELS+=("$1")
    shift
done
[ ${#MODELS[@]} -gt 0 ] || usage "name one or more models"
while [ $# -gt 0 ]; do
    if [ "$1" = --seeds ]; then
        SEEDS=${2:-}
        [[ $SEEDS =~ ^[1-9][0-9]*$ ]] || usage "--seeds must be an integer >= 1"
        shift 2
    else
        OTHERS+=("$1")
        shift
    fi
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for model in "${MODELS[@]}"; do
    OPTIONS=option/$NAME/${NAME}_${model%%:*}.yaml
    [ -f "$OPTIONS" ] || usage "$model: there is no $OPTIONS"
    LABELS+=("$(echo "$model" | sed -E 's/([A-Za-z0-9_]+\.)+([A-Za-z0-9_]+=)/\2/g' | tr -c 'A-Za-z0-9._+\n' '-')")
done
TWICE=$(printf '%s\n' "${LABELS[@]}" | sort | uniq -d)
[ -z "$TWICE" ] || usage "$TWICE is there twice"
source exec/environment.sh

for ((seed = 0; seed < SEEDS; seed++)); do
    for at in "${!MODELS[@]}"; do
        IFS=: read -r model settings <<< "${MODELS[$at]}"
        mapfile -t changes < <(sed -E 's/,([A-Za-z0-9_.]+=)/\n\1/g' <<< "$settings")  # a comma may be in a list
        [ -n "$settings" ] || changes=()
        bash exec/train_and_test.sh "$NAME" "$model" "${OTHERS[@]}" \
            --set "${changes[@]}" seed="$seed" k_fold.experiment_name="${NAME}_${LABELS[$at]}_s$seed"
    done
done
FOLDERS=$(python -m option --path_opt "$OPTIONS" "${OTHERS[@]}" --get logs.ckpt_save_path logs.matrices)
mapfile -t FOLDERS <<< "$FOLDERS"
python -m postprocessing.compare "$NAME" "${LABELS[@]}" --seeds "$SEEDS" --runs "${FOLDERS[0]}" --matrices "${FOLDERS[1]}"
