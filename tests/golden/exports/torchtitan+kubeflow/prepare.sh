#!/usr/bin/env bash
# sweepcp recipe: 16494d4c2447810c
# sweepcp bundle: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
# sweepcp for: torchtitan on kubeflow
# sweepcp status: NOT VERIFIED
# sweepcp run: kubectl apply -f /shared/export/trainjob.yaml
set -euo pipefail
export OMP_NUM_THREADS=1
export PYTHONPATH=/shared/export
export HF_HOME=/shared/hf
export NCCL_DEBUG=WARN
export NCCL_SOCKET_IFNAME='^lo,docker0'
export TOKENIZERS_PARALLELISM=false
: "${HF_TOKEN:?is a secret of this job; set it in the environment that submits the job}"
: "${WANDB_API_KEY:?is a secret of this job; set it in the environment that submits the job}"
/shared/venv/bin/python -m huggingface_hub.cli.hf download meta-llama/Llama-3.1-70B --revision main --local-dir /shared/export/model
