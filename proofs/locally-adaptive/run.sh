#!/usr/bin/env bash
# The experiments behind docs/methods/locally-adaptive.md. Every line is a resumable queue: run this again and it goes on.
# The loss alone differs between arms; steps, network, augmentation and tuning budget are the same.
set -euo pipefail
cd "$(dirname "$0")/../.."
record=(--results proofs/locally-adaptive/results.jsonl --set engine.threads=1 --set engine.loggers=[] --minutes "${MINUTES:-150}")
setting=method.terms.locally-adaptive.settings
parts=(
  --variant "pooling:$setting.k=1.0"
  --variant "power:$setting.n=1"
  --variant "k2:$setting.k=2.0"
)

for data in ${DATA:-camvid-small scenes-small}; do
  runs=proofs/locally-adaptive/runs/$data
  # 1. Main claim and ingredients at full resolution, two learning rates for every arm, chosen by val at seed 0; 5 seeds.
  leanlabel compare "locally-adaptive/$data" "segmentation/$data" "${parts[@]}" --against "segmentation-$data" \
    --no-baselines --seeds 5 --grid optim.lr=0.005,0.015 --out "$runs/main" "${record[@]}"

  # 2. Where it sits: at the stride of the scores (1/4), windows 3, 5 and 7.
  leanlabel compare "locally-adaptive/$data" "segmentation/$data" --against "segmentation-$data" --no-baselines \
    --variant "n5:$setting.n=5" --variant "n7:$setting.n=7" --set method.terms.0.settings.at=feature \
    --set optim.lr=0.015 --seeds 3 --out "$runs/feature" "${record[@]}"

  # 3. Larger windows at full resolution.
  leanlabel compare "locally-adaptive/$data" "segmentation/$data" --against "segmentation-$data" --no-baselines \
    --variant "n5:$setting.n=5" --variant "n7:$setting.n=7" \
    --set optim.lr=0.015 --seeds 3 --out "$runs/windows" "${record[@]}"

  # 4. Wrong labels: 0, 10 and 20 % of the training pixels.
  leanlabel compare "locally-adaptive/$data" "segmentation/$data" --against "segmentation-$data" --no-baselines \
    --variant "power:$setting.n=1" --dial method.label_noise=0.0,0.1,0.2 \
    --set optim.lr=0.015 --seeds 3 --out "$runs/noise" "${record[@]}"
done
