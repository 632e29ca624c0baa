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
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=900
: "${HF_TOKEN:?is a secret of this job; set it in the environment that submits the job}"
: "${WANDB_API_KEY:?is a secret of this job; set it in the environment that submits the job}"
: "${MASTER_ADDR:?set it to the address of one node, the same on all nodes}"
exec /shared/venv/bin/python \
    -m torch.distributed.run \
    --nproc-per-node 8 \
    --nnodes 60 \
    --rdzv-backend c10d \
    --rdzv-endpoint "$MASTER_ADDR:29500" \
    --rdzv-id e-llama-70b-16494d4c2447810c \
    --max-restarts 3 \
    -m llamafactory.launcher \
    /shared/export/llama_factory.yaml
