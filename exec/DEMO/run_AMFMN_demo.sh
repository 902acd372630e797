#!/usr/bin/env bash
# As run_GaLR_demo.sh, with AMFMN.
MODEL=AMFMN bash "$(dirname "${BASH_SOURCE[0]}")/run_GaLR_demo.sh" "$@"
