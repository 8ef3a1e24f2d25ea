#!/usr/bin/env bash
# The experiments behind docs/methods/adapt.md. Every line is a resumable queue: run this again and it goes on. All arms
# of a seed start from the same stage on the source and train for the same number of iterations after it. Settings were
# chosen on the val part of other scenes (data seeds 0 and 1), once, for all arms and sets; CamVid chose nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
record=(--results proofs/adapt/results.jsonl --set engine.threads=1 --set engine.loggers=[] \
  --set evaluation.boundary=false --set evaluation.spread=false --set method.watch_every=0 --minutes 150)
scenes=(--set data.source.seed=10 --set data.target.seed=11 --set evaluation.further=[])
adabn=(--variant "adabn:method.terms=[{name: cross-entropy}]" --variant "adabn:method.ema=null" \
  --variant "adabn:method.sampling={name: uniform}" --variant "adabn:steps=0")
self=(--variant "self-training:method.terms=[{name: cross-entropy}, {name: self-training}]" \
  --variant "self-training:method.ema=null" --variant "self-training:method.sampling={name: uniform}" \
  --variant "self-training:stages.renewed={steps: 0, method: {adabn: true, terms: [{name: cross-entropy}]}}")
warm=(--variant "warm-up:method.terms=[{name: cross-entropy}, {name: adversary, weight: 0.01, settings: {layers: 4, width: 16, lr: 0.001}}]" \
  --variant "warm-up:method.ema=null" --variant "warm-up:method.sampling={name: uniform}")
oracle=(--variant "target-supervised:method.terms=[{name: labelled-target}]" --variant "target-supervised:method.ema=null" \
  --variant "target-supervised:method.sampling={name: uniform}" --variant "target-supervised:method.target_labels=true" \
  --variant "target-supervised:method.adabn=false")
minus=(--variant "minus-mix:method.terms=[{name: cross-entropy}, {name: masked-consistency, weight: 0.5, settings: {block: 16, per_image: true}}]" \
  --variant "minus-masked:method.terms=[{name: cross-entropy}, {name: class-mix, settings: {per_image: true}}]" \
  --variant "minus-rare:method.sampling={name: uniform}" --variant "minus-teacher-norm:method.teacher_norm=running" \
  --variant "minus-adabn:method.adabn=false")

# 1. Scenes at the middle gap: all arms.
leanlabel compare adapt/scenes-small --seeds 3 --against source-only "${adabn[@]}" "${self[@]}" "${warm[@]}" \
  "${oracle[@]}" "${minus[@]}" "${scenes[@]}" --out proofs/adapt/runs/scenes "${record[@]}"

# 2. CamVid by day to dusk, and scenes to CamVid: the short list, and AdaBN.
leanlabel compare adapt/camvid-dusk-small --seeds 3 --against source-only "${adabn[@]}" "${self[@]}" "${oracle[@]}" \
  --out proofs/adapt/runs/camvid-dusk "${record[@]}"
leanlabel compare adapt/scenes-camvid-small --seeds 3 --against source-only "${adabn[@]}" "${self[@]}" "${oracle[@]}" \
  --out proofs/adapt/runs/scenes-camvid "${record[@]}"

# 3. The dial: gain against the size of the gap.
leanlabel compare adapt/scenes-small --seeds 1 --against source-only "${adabn[@]}" "${scenes[@]}" \
  --dial data.target.gap=0.0,0.5,1.0,1.5,2.0 --out proofs/adapt/runs/dial "${record[@]}"

# 4. With and without pre-training on the images of both domains.
python proofs/adapt/pretraining.py 3
