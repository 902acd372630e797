#!/usr/bin/env bash
# On a fresh machine: environment, demo data, local features, training, test, rerank, figures. Minutes on two CPU cores.
# With requirements-search.txt installed, also an index of the test images, a query, and the places in a large scene.
# Run again, it goes on where it was. Arguments go to train.py and test.py (--set KEY=VALUE ..., --device cpu).
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
DATA=data/demo_precomp
SEARCH=$(python -c 'import cv2, milvus_lite, pymilvus, rasterio' 2> /dev/null && echo --scene || true)

python -m util.make_demo --out "$DATA" $SEARCH
python vocab.py --data_path "$DATA" --data_name demo_precomp
python -m util.build_local --data_path "$DATA" --image_path "$DATA/images" --regions "$DATA/boxes" --out "$DATA/local.h5"
bash exec/train_and_test.sh DEMO "${MODEL:-GaLR}" "$@"

if [ -z "$SEARCH" ]; then
    echo "to search one's own images too: pip install -r requirements-search.txt -c constraints.txt (docs/search.md)"
    exit 0
fi
[ "${MODEL:-GaLR}" = GaLR ] || exit 0
RUN=(--path_opt option/DEMO/DEMO_GaLR.yaml --resume checkpoint/DEMO_GaLR/0/GaLR_best.pth.tar "$@")
mkdir -p data/demo_test
sort -u "$DATA/test_filename.txt" | (cd "$DATA/images" && xargs -d '\n' cp -pu -t ../../demo_test)
python -m search.index "${RUN[@]}" --images data/demo_test --regions "$DATA/boxes" --out data/demo_test.db --add
python -m search.query --index data/demo_test.db --text "a red bridge across the river" --top 5
python -m search.evaluate "${RUN[@]}" --annotations "$DATA/scene/anno.json" --images "$DATA/scene" \
    --regions "$DATA/scene/boxes"
