#!/usr/bin/env bash
# sweepcp recipe: 16494d4c2447810c
# sweepcp bundle: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
# sweepcp for: megatron-lm on slurm
# sweepcp status: NOT VERIFIED
# sweepcp run: sbatch /shared/export/job.sbatch
: # Shell code of the site file follows.
module purge
module load nccl || exit 1
# End of the shell code of the site file.
set +e
set -euo pipefail
export OMP_NUM_THREADS=1
export CUDA_DEVICE_MAX_CONNECTIONS=1
export HF_HOME=/shared/hf
export NCCL_DEBUG=WARN
export NCCL_SOCKET_IFNAME='^lo,docker0'
export TOKENIZERS_PARALLELISM=false
: "${HF_TOKEN:?is a secret of this job; set it in the environment that submits the job}"
: "${WANDB_API_KEY:?is a secret of this job; set it in the environment that submits the job}"
/shared/venv/bin/python -m huggingface_hub.cli.hf download meta-llama/Llama-3.1-70B --revision main --local-dir /shared/export/model
/shared/venv/bin/python /shared/Megatron-LM/tools/checkpoint/convert.py --model-type GPT --loader llama_mistral --model-size llama3 --checkpoint-type hf --load-dir /shared/export/model --tokenizer-model /shared/export/model --make-vocab-size-divisible-by 1 --saver core --save-dir /shared/export/base --target-tensor-parallel-size 8 --target-pipeline-parallel-size 4
