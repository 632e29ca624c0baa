#!/usr/bin/env bash
# sweepcp recipe: 16494d4c2447810c
# sweepcp bundle: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
# sweepcp for: axolotl on skypilot
# sweepcp status: NOT VERIFIED
# sweepcp run: sky jobs launch /shared/export/task.yaml --secret HF_TOKEN --secret WANDB_API_KEY
set -euo pipefail
export OMP_NUM_THREADS=1
export AXOLOTL_DO_NOT_TRACK=1
export HF_HOME=/shared/hf
export NCCL_DEBUG=WARN
export NCCL_SOCKET_IFNAME='^lo,docker0'
export TOKENIZERS_PARALLELISM=false
: "${HF_TOKEN:?is a secret of this job; set it in the environment that submits the job}"
: "${WANDB_API_KEY:?is a secret of this job; set it in the environment that submits the job}"
/shared/venv/bin/python -m sweepcp data mix /shared/bundle --out /shared/export/mix --rows documents --workers "$(nproc)"
/shared/venv/bin/python -m axolotl.cli.preprocess /shared/export/axolotl.yaml
