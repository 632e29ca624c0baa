#!/usr/bin/env bash
# sweepcp recipe: 16494d4c2447810c
# sweepcp bundle: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
# sweepcp for: llama-factory on torchrun
# sweepcp status: NOT VERIFIED
# sweepcp run: bash /shared/export/run.sh  # on each of 60 nodes, with MASTER_ADDR set
set -euo pipefail
export OMP_NUM_THREADS=1
export HF_HOME=/shared/hf
export NCCL_DEBUG=WARN
export NCCL_SOCKET_IFNAME='^lo,docker0'
export TOKENIZERS_PARALLELISM=false
: "${HF_TOKEN:?is a secret of this job; set it in the environment that submits the job}"
: "${WANDB_API_KEY:?is a secret of this job; set it in the environment that submits the job}"
/shared/venv/bin/python -m sweepcp data mix /shared/bundle --out /shared/export/mix --rows sequences --workers "$(nproc)"
