#!/usr/bin/env bash
# The ablations: trains and scores a data set without one part of DREA or of the model after the other, one table at the end.
#   bash exec/ablation.sh DEMO data/demo_precomp/boxes [--set k_fold.nums=3 ...]
#   bash exec/ablation.sh UCM proposals
#   ROWS="drea no_local" bash exec/ablation.sh UCM proposals        these rows alone
# Local features. zeros: none; raw: the most salient regions, all joined alike; denoised: merged regions, joined alike;
# enhanced: the most salient regions, weighted edges; drea: both.
# The model, with drea. no_local: without the local branch; no_mvsa: without multi-scale attention; sum, concatenation: in
# place of MIDF; no_gate: MIDF without its dynamic weights.
# Run again, it goes on where it was. BUILD="--allow-missing" gives options to util.build_local.
if [ $# -lt 2 ]; then
    echo "error: name a data set, and where its regions come from: bash exec/ablation.sh UCM proposals" >&2
    exit 2
fi
declare -A RULES=([raw]="--no-denoise --no-enhance" [denoised]="--no-enhance" [enhanced]="--no-denoise" [drea]="")
declare -A PARTS=([no_local]=model.local_branch=False [no_mvsa]=model.mvsa=False [sum]=model.fusion.kind=sum
                  [concatenation]=model.fusion.kind=concatenation [no_gate]=model.fusion.gate=none)
ROWS=${ROWS:-zeros raw denoised enhanced drea no_local no_mvsa sum concatenation no_gate}
for row in $ROWS; do
    if [ "$row" != zeros ] && [ -z "${RULES[$row]+x}${PARTS[$row]+x}" ]; then
        echo "error: ROWS: no row $row; there are zeros ${!RULES[*]} ${!PARTS[*]}" >&2
        exit 2
    fi
done
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
NAME=$1
REGIONS=$2
shift 2
LABEL=$(echo "$REGIONS" | tr -cs 'A-Za-z0-9._\n' '-')
PATHS=$(python -m option --path_opt "option/$NAME/${NAME}_GaLR.yaml" "$@" \
    --get dataset.data_path dataset.image_path logs.ckpt_save_path)
mapfile -t PATHS <<< "$PATHS"
DATA=${PATHS[0]%/} RUNS_AT=${PATHS[2]%/}

RUNS=()
for row in $ROWS; do
    features=$row changes=()
    if [ -n "${PARTS[$row]+x}" ]; then
        features=drea changes=("${PARTS[$row]}")
    fi
    if [ "$row" = zeros ] || [ "$row" = no_local ]; then
        run=${NAME}_$row local_path=zeros
    else
        run=${NAME}_${LABEL}_$row local_path=$DATA/${LABEL}_$features.h5
        # shellcheck disable=SC2086
        if [ -f "$local_path" ]; then
            echo "using $local_path, made before; remove it and $RUNS_AT/$run to make both anew"
        else
            python -m util.build_local --data_path "$DATA" --image_path "${PATHS[1]}" \
                --regions "$REGIONS" --out "$local_path" ${RULES[$features]} ${BUILD:-}
        fi
    fi
    bash exec/train_and_test.sh "$NAME" "$@" \
        --set dataset.local_path="$local_path" k_fold.experiment_name="$run" "${changes[@]}"
    RUNS+=("$RUNS_AT/$run")
done
python -m postprocessing.tables "${RUNS[@]}"
