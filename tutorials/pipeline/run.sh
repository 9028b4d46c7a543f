#!/usr/bin/env bash
# The steps of the Snakefile one after another:
#   run.sh CELLS.h5ad OUT CONDITION_KEY LABELS_KEY [LABEL:TARGET ...]
# Settings: SOURCE, METHODS, SEEDS, N_TOP_GENES, MIN_CELLS, MAX_EPOCHS.  What is there is not made again.
# Ends with the exit code of the step that failed: 1 failed, 2 bad input, 130 interrupted.
set -euo pipefail
export LC_ALL=C

if [ $# -lt 4 ]; then
    sed -n '3,5s/^# *//p' "$0" >&2
    exit 2
fi
cells=$1 out=$2 keys=(--condition-key "$3" --labels-key "$4")
given=("${@:5}")
here=$(dirname "$0")
source=(${SOURCE:+"--source=$SOURCE"})
genes=(--n-top-genes "${N_TOP_GENES:-2000}")
epochs=(${MAX_EPOCHS:+--max-epochs "$MAX_EPOCHS"})
read -ra methods <<< "${METHODS:-no_change mean_shift context_shift trvae}"
fits=("${keys[@]}" "${source[@]}" "${genes[@]}" "${epochs[@]}" --methods "${methods[@]}"
    --seeds "${SEEDS:-3}" -o "$out/benchmark")

# step FILE COMMAND...: what the command prints, into a file that is there completely or not at all
step() {
    local file=$1 code=0
    shift
    mkdir -p "$(dirname "$file")"
    "$@" > "$file.part" || code=$?
    if [ "$code" -ne 0 ]; then
        rm -f "$file.part"
        echo "run.sh: exit code $code from: $*" >&2
        exit "$code"
    fi
    mv "$file.part" "$file"
}

step "$out/holdouts.json" trvae-sc benchmark "$cells" "${fits[@]}" --min-cells "${MIN_CELLS:-30}" \
    "${given[@]/#/--holdout=}" --list --json
listed=$(python3 -c 'import json, sys
for one in json.load(open(sys.argv[1])):
    print(one["holdout"], one["label"], one["source"], one["target"], sep="\n")' "$out/holdouts.json")
mapfile -t fields <<< "$listed"

names=() holdouts=() predictions=()
for ((i = 0; i < ${#fields[@]}; i += 4)); do
    holdout=${fields[i]}
    holdouts+=("$holdout")
    names+=("$(printf %s "$holdout" | tr ':' '-' | tr -c 'A-Za-z0-9+._-' '_')")
done
if [ -n "$(printf '%s\n' "${names[@]}" | sort | uniq -d)" ]; then
    echo "run.sh: hold-outs have names that files cannot tell apart: ${holdouts[*]}" >&2
    exit 2
fi

step "$out/benchmark.json" trvae-sc benchmark "$cells" "${fits[@]}" --json "${holdouts[@]/#/--holdout=}"
cp "$out/benchmark/summary.json" "$out/benchmark/table.csv" "$out"

for i in "${!names[@]}"; do
    name=${names[i]} holdout=${holdouts[i]}
    model=$out/models/$name prediction=$out/predictions/$name checkpoint=$out/checkpoints/$name
    if [ ! -e "$model.json" ]; then
        step "$model.json" trvae-sc train "$cells" "${keys[@]}" "${genes[@]}" "${epochs[@]}" \
            "--holdout=$holdout" --checkpoint-dir "$checkpoint" -o "$model" --force --json
    fi
    rm -rf "$checkpoint"
    if [ ! -e "$prediction.json" ]; then
        step "$prediction.json" trvae-sc predict "$model" "$cells" "--labels=${fields[4 * i + 1]}" \
            "--source=${fields[4 * i + 2]}" "--target=${fields[4 * i + 3]}" -o "$prediction.h5ad" --force --json
    fi
    predictions+=("$prediction.h5ad")
done

step "$out/report.json" trvae-sc report "$out/benchmark" -o "$out/report.html" --force --json \
    --predictions "${predictions[@]}"
step "$out/pipeline.json" python3 "$here/collect.py" "$out" "${names[@]}"
