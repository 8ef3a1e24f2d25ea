#!/usr/bin/env bash
# The experiments behind docs/methods/mochi.md. Every line is a resumable queue: run this again and it goes on.
# Fewer seeds than here have run so far; the page says which.
set -euo pipefail
cd "$(dirname "$0")/../.."
record=(--results proofs/mochi/results.jsonl --set engine.threads=1 --minutes "${MINUTES:-150}")

# 1. Main claim: mixing against none, 200 classes, learning rate of both arms tuned alike by validation, 5 seeds.
leanlabel compare mochi/glyphs --seeds 5 --grid optim.lr=0.05,0.15 --against moco-v2 \
  --out proofs/mochi/runs/glyphs "${record[@]}"

# 2. The control: ten classes, where N C / K = 0.6.
leanlabel compare mochi/cifar10 --seeds 3 --grid optim.lr=0.05,0.1 --against moco-v2 \
  --out proofs/mochi/runs/cifar10 "${record[@]}"

# 3. The dial: as many images, fewer or more classes, so that more or fewer of the hardest keys are false negatives.
leanlabel compare mochi/glyphs --arm mochi-glyphs --arm moco-v2 --seeds 3 --against moco-v2 \
  --dial data.classes+data.per_class=25:320,50:160,100:80,400:20 --set optim.lr=0.05 \
  --out proofs/mochi/runs/dial "${record[@]}"

# 4. The field beside it, at the learning rate that both arms of 1 chose; not tuned for these methods.
leanlabel compare simclr/glyphs byol/glyphs vicreg/glyphs supervised-image/glyphs --seeds 3 --no-baselines \
  --set optim.lr=0.05 --out proofs/mochi/runs/field "${record[@]}"

# 5. PACS without labels, readouts on all of it and in each domain.
leanlabel compare moco-v2/pacs simclr/pacs --arm moco-v2-pacs --arm simclr-pacs --arm untrained --seeds 3 \
  --out proofs/mochi/runs/pacs "${record[@]}"

# 6. Ablation: pairs only, and the class oracle with and without mixing.
leanlabel compare mochi/glyphs --no-baselines --seeds 3 --set optim.lr=0.05 \
  --variant pairs:method.mixing.with_query=0 --variant oracle:method.class_oracle=true \
  --out proofs/mochi/runs/ablation "${record[@]}"
leanlabel compare moco-v2/glyphs --no-baselines --seeds 3 --set optim.lr=0.05 \
  --variant oracle:method.class_oracle=true --out proofs/mochi/runs/oracle "${record[@]}"
