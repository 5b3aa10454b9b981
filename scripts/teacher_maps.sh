#!/usr/bin/env bash
# Maps of one teacher for all training images and clips: scripts/teacher_maps.sh TEACHER [CHECKPOINT]
# Reads $SALCAP_SHARED (default ../shared), writes runs/maps/TEACHER/. Started again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
teacher=$1
data=${SALCAP_SHARED:-../shared}/data
export SALCAP_WEIGHTS=${SALCAP_WEIGHTS:-$data/saliency/teachers}
options=(--teacher "$teacher")
[ $# -gt 1 ] && options+=(--option "checkpoint=$2")
maps=runs/maps/$teacher
salcap saliency-cache "${options[@]}" --images "$data/saliency/osie/images" --output "$maps/osie"
salcap saliency-cache "${options[@]}" --images "$data/saliency/sun500/images" --output "$maps/sun500"
salcap saliency-cache "${options[@]}" --images "$data/captions/coco_val2017/images" --output "$maps/coco"
salcap saliency-cache "${options[@]}" --videos "$data/clips" --pattern "*.mp4" --num-frames 16 --output "$maps/clips"
if [ "$teacher" != attention_center ]; then # whose maps of Flickr8k come with the data
  salcap saliency-cache "${options[@]}" --images "$data/captions/flickr8k/images" --output "$maps/flickr8k"
fi
for crops in runs/crops/*; do # of scripts/make_crops.py
  if [ -d "$crops" ]; then
    salcap saliency-cache "${options[@]}" --images "$crops" --output "$maps/crops-$(basename "$crops")"
  fi
done
