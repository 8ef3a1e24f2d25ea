#!/usr/bin/env bash
# The experiments behind docs/methods/content-transfer.md. Every line is a resumable queue: run this again and it goes
# on. All arms train 1,200 iterations before the pseudo labels and 400 after them. Scenes have other data seeds than
# those that settings were chosen on; CamVid chose nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
record=(--results proofs/content-transfer/results.jsonl --set engine.threads=1 --set engine.loggers=[] \
  --set evaluation.boundary=false --set evaluation.spread=false --set method.watch_every=0 --minutes 150)
scenes=(--set data.source.seed=10 --set data.target.seed=11 --set evaluation.further=[])
adabn=(--variant "adabn:steps=0" --variant "adabn:method.terms=[{name: cross-entropy}]" \
  --variant "adabn:stages.separate.method.terms=[{name: cross-entropy}]")
plain=(--variant "no-style:stages.separate.method.terms=[{name: cross-entropy}, {name: adversary, weight: 0.01, settings: {layers: 4, width: 16, lr: 0.001, divisor: 1.0}}]" \
  --variant "no-style:method.terms=[{name: cross-entropy}, {name: self-training}, {name: content-transfer, settings: {min_pixels: 60, style: none}}]")
feature=(--variant "feature:stages.separate.method.terms=[{name: cross-entropy}, {name: adversary, weight: 0.01, settings: {layers: 4, width: 16, lr: 0.001, divisor: 1.0}}]" \
  --variant "feature:method.terms=[{name: cross-entropy}, {name: self-training}, {name: content-transfer, settings: {min_pixels: 60, mode: feature, style: none}}]")
half=(--variant "half-of-classes:stages.separate.method.terms=[{name: cross-entropy}, {name: adversary, weight: 0.01, settings: {layers: 4, width: 16, lr: 0.001, divisor: 1.0}}]" \
  --variant "half-of-classes:method.terms=[{name: cross-entropy}, {name: self-training}, {name: class-mix, settings: {online: false, strong: {}}}]")
decoded=(--variant "decoded:method.terms=[{name: cross-entropy}, {name: self-training}, {name: zero-style, settings: {style_width: 16, widths: [48, 32, 16, 16], lr: 0.001, divisor: 1.0}}, {name: content-transfer, settings: {min_pixels: 60, mode: decoded, style: none, reliable: 1.0}}]")
nozero=(--variant "no-zero:stages.separate.method.terms=[{name: cross-entropy}, {name: adversary, weight: 0.01, settings: {layers: 4, width: 16, lr: 0.001, divisor: 1.0}}, {name: zero-style, settings: {style_width: 16, widths: [48, 32, 16, 16], lr: 0.001, divisor: 1.0, zero: 0.0}}]" \
  --variant "no-zero:method.terms=[{name: cross-entropy}, {name: self-training}, {name: zero-style, settings: {style_width: 16, widths: [48, 32, 16, 16], lr: 0.001, divisor: 1.0, zero: 0.0}}]")
nodrift=(--variant "no-drift:stages.separate.method.terms=[{name: cross-entropy}, {name: adversary, weight: 0.01, settings: {layers: 4, width: 16, lr: 0.001, divisor: 1.0}}, {name: zero-style, settings: {style_width: 16, widths: [48, 32, 16, 16], lr: 0.001, divisor: 1.0, content: 0.0}}]" \
  --variant "no-drift:method.terms=[{name: cross-entropy}, {name: self-training}, {name: zero-style, settings: {style_width: 16, widths: [48, 32, 16, 16], lr: 0.001, divisor: 1.0, content: 0.0}}]")

# 1. Scenes: which way of pasting, and with or without zero style.
leanlabel compare content-transfer/scenes-small --seeds 3 --against self-training "${adabn[@]}" "${plain[@]}" \
  "${feature[@]}" "${half[@]}" "${decoded[@]}" "${scenes[@]}" --out proofs/content-transfer/runs/scenes "${record[@]}"

# The same decoder without the zero-style losses, which the separation measures are to be held against, and without
# the part of them that keeps content alone.
leanlabel compare content-transfer/scenes-small --seeds 1 --arm minus-transfer --arm no-zero --arm no-drift "${nozero[@]}" "${nodrift[@]}" \
  "${scenes[@]}" --out proofs/content-transfer/runs/no-zero "${record[@]}"

# 2. CamVid by day to dusk.
leanlabel compare content-transfer/camvid-dusk-small --seeds 3 --against self-training "${adabn[@]}" "${plain[@]}" \
  "${feature[@]}" "${half[@]}" --out proofs/content-transfer/runs/camvid-dusk "${record[@]}"

# 3. Zero style by the gap in style and, apart from it, by the gap in content; self-training is without it.
leanlabel compare content-transfer/scenes-small --seeds 1 --against self-training --arm minus-transfer --arm self-training \
  "${scenes[@]}" --dial data.target.gap=0.0,0.5,1.5,2.0 --out proofs/content-transfer/runs/style-dial "${record[@]}"
leanlabel compare content-transfer/scenes-small --seeds 1 --against self-training --arm minus-transfer --arm self-training \
  "${scenes[@]}" --set data.target.gap=0.0 --dial data.target.content=0.5,1.0 \
  --out proofs/content-transfer/runs/content-dial "${record[@]}"
