#!/usr/bin/env bash
# The experiments behind docs/methods/spcl.md. Every line is a resumable queue: run this again and it goes on. Scenes
# have other data seeds than those that settings were chosen on.
set -euo pipefail
cd "$(dirname "$0")/../.."
record=(--results proofs/spcl/results.jsonl --set engine.threads=1 --set engine.loggers=[] \
  --set evaluation.boundary=false --set evaluation.spread=false --set method.watch_every=0 --minutes 150)
scenes=(--set data.source.seed=10 --set data.target.seed=11 --set evaluation.further=[])

# 1. Where more of the premise holds: 256 features, an encoder (not the decoder) pre-trained on both domains. Weight
#    chosen on the source.
python proofs/spcl/premise.py choose
python proofs/spcl/premise.py main 3

# 2. Systematic mistakes in the pseudo labels.
python proofs/spcl/premise.py noise 3

# 3. The five stages of 2021, and today's recipe with and without the term, on a network of 48 features from scratch.
leanlabel compare spcl/scenes-2021 --seeds 3 --against minus-prototypes "${scenes[@]}" --out proofs/spcl/runs/stages "${record[@]}"
leanlabel compare spcl/scenes-small --seeds 3 --against minus-prototypes "${scenes[@]}" --out proofs/spcl/runs/modern "${record[@]}"

# 4. The dial: gain against the size of the gap.
python proofs/spcl/premise.py gap 3
