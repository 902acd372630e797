#!/usr/bin/env bash
# Fine-tunes CLIP on UCM and scores the test split. GPU=1 uses the second GPU; arguments go to train.py and test.py.
bash "$(dirname "${BASH_SOURCE[0]}")/../train_and_test.sh" UCM CLIP "$@"
