#!/usr/bin/env bash
# What each part of DREA gives: trains and scores a data set with five kinds of local features, one table at the end.
#   bash exec/ablation.sh DEMO data/demo_precomp/boxes [arguments of train.py and test.py, such as --set k_fold.nums=3]
#   bash exec/ablation.sh UCM proposals
# zeros: no local branch; raw: the most salient regions, all joined alike; denoised: merged regions, joined alike;
# enhanced: the most salient regions, weighted edges; drea: both. Run again, it goes on where it was.
# It wants the images in data/{name}_precomp/images. BUILD="--allow-missing" gives options to util.build_local.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
NAME=${1:?name a data set, such as UCM}
REGIONS=${2:?say where regions come from: a folder or file of a detector, or proposals}
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
        [ -f "$local_path" ] || python -m util.build_local --data_path "$DATA" --image_path "$DATA/images" \
            --regions "$REGIONS" --out "$local_path" ${RULES[$kind]} ${BUILD:-}
    fi
    bash exec/train_and_test.sh "$NAME" "$@" --set dataset.local_path="$local_path" k_fold.experiment_name="$run"
    RUNS+=("checkpoint/$run")
done
python -m postprocessing.tables "${RUNS[@]}"
