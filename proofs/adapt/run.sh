#!/usr/bin/env bash
# The experiments behind docs/methods/adapt.md. Every line is a resumable queue: run this again and it goes on. All arms
# of a seed start from the same stage on the source and train for the same number of iterations after it. Settings were
# chosen on the val part of other scenes (data seeds 0 and 1), once, for all arms and sets.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=proofs/adapt/runs
record=(--results proofs/adapt/results.jsonl --set engine.threads=1 --set engine.loggers=[]
  --set evaluation.boundary=false --set evaluation.spread=false --set method.watch_every=0 --minutes "${MINUTES:-150}")
fresh_scenes=(--set data.source.seed=10 --set data.target.seed=11)
ce="{name: cross-entropy}"
mix="{name: class-mix, settings: {per_image: true}}"
masked="{name: masked-consistency, weight: 0.5, settings: {block: 16, per_image: true}}"
plain() { printf -- '--variant\n%s:method.terms=%s\n--variant\n%s:method.ema=null\n--variant\n%s:method.sampling={name: uniform}\n' "$1" "$2" "$1" "$1"; }
mapfile -t adabn < <(plain adabn "[$ce]"; printf -- '--variant\n%s\n' "adabn:steps=0")
mapfile -t self < <(plain self-training "[$ce, {name: self-training}]"
  printf -- '--variant\n%s\n' "self-training:stages.renewed={steps: 0, method: {adabn: true, terms: [$ce]}}")
mapfile -t warm < <(plain warm-up "[$ce, {name: adversary, weight: 0.01, settings: {layers: 4, width: 16, lr: 0.001}}]")
mapfile -t oracle < <(plain target-supervised "[{name: labelled-target}]"
  printf -- '--variant\n%s\n' "target-supervised:method.target_labels=true" "target-supervised:method.adabn=false")
minus=(
  --variant "minus-mix:method.terms=[$ce, $masked]"
  --variant "minus-masked:method.terms=[$ce, $mix]"
  --variant "minus-rare:method.sampling={name: uniform}"
  --variant "minus-teacher-norm:method.teacher_norm=running"
  --variant "minus-adabn:method.adabn=false"
)

# 1. Scenes at the middle gap: all arms.
leanlabel compare adapt/scenes-small --seeds 3 --against source-only "${adabn[@]}" "${self[@]}" "${warm[@]}" "${oracle[@]}" \
  "${minus[@]}" "${fresh_scenes[@]}" --set evaluation.further=[] --out "$runs/scenes" "${record[@]}"

# 2. CamVid by day to dusk, and scenes to CamVid: the short list, and AdaBN.
for data in camvid-dusk scenes-camvid; do
  leanlabel compare "adapt/$data-small" --seeds 3 --against source-only "${adabn[@]}" "${self[@]}" "${oracle[@]}" \
    --out "$runs/$data" "${record[@]}"
done

# 3. The dial: gain against the size of the gap.
leanlabel compare adapt/scenes-small --seeds "${DIAL_SEEDS:-1}" --against source-only "${fresh_scenes[@]}" --set evaluation.further=[] \
  "${adabn[@]}" --dial data.target.gap=0.0,0.5,1.0,1.5,2.0 --out "$runs/dial" "${record[@]}"
