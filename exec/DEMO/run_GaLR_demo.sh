#!/usr/bin/env bash
# On a fresh machine: environment, demo data, local features, training, test, rerank, figures. Minutes on two CPU cores.
# Run again, it goes on where it was. Arguments go to train.py and test.py (--set KEY=VALUE ..., --device cpu).
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
DATA=data/demo_precomp

python -m util.make_demo --out "$DATA"
python vocab.py --data_path "$DATA" --data_name demo_precomp
python -m util.build_local --data_path "$DATA" --image_path "$DATA/images" --regions "$DATA/boxes" --out "$DATA/local.h5"
bash exec/train_and_test.sh DEMO "${MODEL:-GaLR}" "$@"
