#!/usr/bin/env bash
# What each part of DREA gives: trains and scores a data set with five kinds of local features, one table at the end.
#   bash exec/ablation.sh DEMO data/demo_precomp/boxes [--set k_fold.nums=3 ...]
#   bash exec/ablation.sh UCM proposals
# zeros: no local branch; raw: the most salient regions, all joined alike; denoised: merged regions, joined alike;
# enhanced: the most salient regions, weighted edges; drea: both. Run again, it goes on where it was.
# It wants the images in data/{name}_precomp/images. BUILD="--allow-missing" gives options to util.build_local.
if [ $# -lt 2 ]; then
    echo "error: name a data set, and where its regions come from: bash exec/ablation.sh UCM proposals" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
NAME=$1
REGIONS=$2
shift 2
LABEL=$(echo "$REGIONS" | tr -cs 'A-Za-z0-9._\n' '-')
DATA=data/$(echo "$NAME" | tr '[:upper:]' '[:lower:]')_precomp
declare -A RULES=([raw]="--no-denoise --no-enhance" [denoised]="--no-enhance" [enhanced]="--no-denoise" [drea]="")

RUNS=()
for kind in zeros raw denoised enhanced drea; do
    if [ "$kind" = zeros ]; then
        run=${NAME}_zeros local_path=zeros
    else
        run=${NAME}_${LABEL}_$kind local_path=$DATA/${LABEL}_$kind.h5
        # shellcheck disable=SC2086
        if [ -f "$local_path" ]; then
            echo "using $local_path, made before; remove it and checkpoint/$run to make both anew"
        else
            python -m util.build_local --data_path "$DATA" --image_path "$DATA/images" \
                --regions "$REGIONS" --out "$local_path" ${RULES[$kind]} ${BUILD:-}
        fi
    fi
    bash exec/train_and_test.sh "$NAME" "$@" --set dataset.local_path="$local_path" k_fold.experiment_name="$run"
    RUNS+=("checkpoint/$run")
done
python -m postprocessing.tables "${RUNS[@]}"
