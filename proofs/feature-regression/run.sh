#!/usr/bin/env bash
# The experiments behind docs/methods/feature-regression.md. Every line is a resumable queue: run this again and it goes
# on. The first stage, on the old camera, is computed once per seed. Masks of the new camera are read by `labelled` alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=proofs/feature-regression/runs
record=(--results proofs/feature-regression/results.jsonl --set engine.threads=1 --set engine.loggers=[] \
  --set evaluation.boundary=false --set evaluation.spread=false --set evaluation.further=[] \
  --set method.watch_every=0 --minutes 150)
against=(--against unadapted)
none="{random: 0, constant: [0, 0]}"
random="{random: 5, constant: [0, 0]}"
constant="{random: 0, constant: [0, 4]}"

# 1. Another camera, every image off by up to 5 pixels, by nothing, and always by 4.
for shift in random none constant; do
  leanlabel compare feature-regression/camvid-small --seeds 3 "${against[@]}" --set "data.target.shift=${!shift}" \
    --out "$runs/camera-$shift" "${record[@]}"
done

# 2. Inverted values, grey and blurred, with the same shifts.
for sensor in inversion grey-blur; do
  for shift in random none constant; do
    leanlabel compare feature-regression/camvid-small --seeds 3 "${against[@]}" \
      --set "data.target.sensor=$sensor" --set "data.target.shift=${!shift}" --out "$runs/$sensor-$shift" "${record[@]}"
  done
done

# 3. One channel that answers like infrared: another first convolution.
leanlabel compare feature-regression/camvid-small --seeds 1 "${against[@]}" --set data.target.sensor=infrared \
  --set "data.target.shift={random: 5, constant: [0, 0]}" --set "target_augment={crop: [96, 128], scale: [0.75, 1.75], mean: [0.45], std: [0.25]}" \
  --out proofs/feature-regression/runs/infrared "${record[@]}"

# 4. How far off images may be: the loss as it is, maps pooled 2 x 2, one shift per image; and the masks themselves.
leanlabel compare feature-regression/camvid-small --seeds 3 --no-baselines \
  --variant "mask-reuse:method.terms=[{name: mask-reuse}]" \
  --variant "pooled:method.terms.0.settings.tolerance={kind: pool, size: 2}" \
  --variant "global:method.terms.0.settings.tolerance={kind: global, size: 2}" \
  --dial "data.target.shift={random: 2},{random: 8},{random: 12}" --out proofs/feature-regression/runs/dial "${record[@]}"
