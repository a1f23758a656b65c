# Sourced by the recipes: `run ARGUMENT...` starts `vl2 train` with the arguments that all of the reference's scripts share.
#
#   PROCESSES  number of processes; the default is one per NVIDIA GPU of this machine
#   ZERO       DeepSpeed's ZeRO stage, 2 or 3, for several processes
#   LAUNCH     a command to run instead; LAUNCH=echo prints the arguments
set -eu
configs=$(dirname "$0")/../configs
PROCESSES=${PROCESSES:-$( (nvidia-smi -L 2>/dev/null || true) | grep -c GPU || true)}

run() {
    set -- --questions-per-media 1 --warmup 0.03 --weight-decay 0 --max-tokens 2048 --seed 42 --bf16 \
        --gradient-checkpointing --workers 4 --log-steps 1 "$@"
    if [ -n "${LAUNCH:-}" ]; then
        $LAUNCH "$@"
    elif [ "$PROCESSES" -gt 1 ]; then
        torchrun --nproc-per-node "$PROCESSES" -m videollama_client train --deepspeed "$configs/zero$ZERO.json" "$@"
    else
        vl2 train "$@"
    fi
}
