#!/usr/bin/env bash
# tests/gpu/run.sh - on a machine with an NVIDIA GPU and no network: builds for its card, checks the
# kernels and the cuda device against the CPU, looks for bad accesses and races (compute-sanitizer,
# where it is installed), measures copies, kernels beside cuBLAS and a small streamed model, and
# prints one table at the end. At most 15 minutes; each step has a limit of its own.
#   tests/gpu/run.sh [OUT]     OUT (default build-gpu/results): logs of all steps, and table.txt
# Needs nvcc, gcc, meson, ninja, pkg-config, python3. Development packages that are missing
# (libhwloc-dev, liburing-dev, libjansson-dev, libpcre2-dev, libutf8proc-dev, libcmocka-dev and their
# libraries) may lie unpacked, by `dpkg -x`, in the folder SLUICE_DEBS.
set -u
cd "$(dirname "$0")/../.." || exit 1
say() { printf '%s\n' "$*" >&2; }
die() { say "tests/gpu/run.sh: $*"; exit 1; }

command -v nvidia-smi > /dev/null || die 'no GPU here: there is no nvidia-smi'
cap=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -n 1 | tr -d '. ')
case $cap in '' | *[!0-9]*) die 'no GPU here: nvidia-smi lists none' ;; esac
PATH=$PATH:/usr/local/cuda/bin
for tool in nvcc gcc meson ninja pkg-config python3; do
    command -v "$tool" > /dev/null || die "$tool is missing"
done
if [ -n "${SLUICE_DEBS-}" ]; then
    [ -d "$SLUICE_DEBS/usr" ] || die "SLUICE_DEBS=$SLUICE_DEBS has no folder usr"
    lib=$SLUICE_DEBS/usr/lib/x86_64-linux-gnu
    export PKG_CONFIG_PATH=$lib/pkgconfig:$SLUICE_DEBS/usr/share/pkgconfig:${PKG_CONFIG_PATH-}
    export CPATH=$SLUICE_DEBS/usr/include:$SLUICE_DEBS/usr/include/x86_64-linux-gnu:${CPATH-}
    export LIBRARY_PATH=$lib:${LIBRARY_PATH-} LD_LIBRARY_PATH=$lib:${LD_LIBRARY_PATH-}
fi
# cuBLAS may come with Python's packages instead of the toolkit.
for dir in "$(dirname "$(command -v nvcc)")/../lib64" $(python3 -c 'import glob, site
print(*[d for s in site.getsitepackages() for d in glob.glob(s + "/nvidia/cu*/lib")])' 2> /dev/null); do
    export LD_LIBRARY_PATH=$dir:${LD_LIBRARY_PATH-}
done

out=${1:-build-gpu/results}
mkdir -p "$out" build-gpu
table=$out/table.txt
started=$SECONDS passed=0 failed=0
nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current \
    --format=csv,noheader | sed 's/^/card | /' > "$table"

log_of() { printf '%s.log' "$(printf '%s' "$1" | tr -c 'a-z0-9\n' '_')"; }

# step NAME SECONDS COMMAND... : its output to a log; a line of the table
step() {
    local name=$1 limit=$2 log status at=$SECONDS
    shift 2
    log=$out/$(log_of "$name")
    if [ $((SECONDS - started)) -gt 840 ]; then
        printf '%s | not run: 14 minutes are over\n' "$name" >> "$table"
        return 1
    fi
    timeout -k 5 "$limit" "$@" > "$log" 2>&1
    status=$?
    case $status in
        0) passed=$((passed + 1)); printf '%s | ok, %d s\n' "$name" $((SECONDS - at)) >> "$table" ;;
        77) printf '%s | skipped: %s\n' "$name" "$(tail -n 1 "$log")" >> "$table" ;;
        *) failed=$((failed + 1))
           printf '%s | FAILED (%d): %s\n' "$name" "$status" "$(tail -n 1 "$log")" >> "$table" ;;
    esac
    return $status
}

finish() {
    column -t -s '|' "$table" 2> /dev/null || cat "$table"
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ] && [ "$passed" != 0 ]
    exit
}

[ -f build-gpu/build.ninja ] \
    || step 'configure' 60 meson setup build-gpu -Dcuda=enabled -Dgpu_targets="$cap" || finish
step 'build' 420 ninja -C build-gpu tools/sluice tests/t_cuda_kernels_gpu tests/t_cuda_device_gpu tests/gpu_bench || finish
test=build-gpu/tests
step 'kernels against the cpu' 60 $test/t_cuda_kernels_gpu
step 'device against the cpu' 60 $test/t_cuda_device_gpu
grep -h 'logits within' "$out"/device_against_the_cpu.log 2> /dev/null | sed 's/: /| /' >> "$table"
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck synccheck; do
        step "$tool" 90 compute-sanitizer --tool "$tool" --error-exitcode 9 $test/t_cuda_kernels_gpu quick
    done
else
    echo 'compute-sanitizer | not installed' >> "$table"
fi
step 'measure' 120 $test/gpu_bench
sed 's/: /| /' "$out/measure.log" >> "$table"

# A model that does not fit what it may use of the card, and one that does: what is measured beside the least time of the
# plan (what the link, the card and the CPU have to do at least) and the forecast. Cells of bench's table: 7 test, 8 tok/s,
# 9 bound, 10 share, 11 limited by, 12 forecast.
model=$out/streamed.gguf
if step 'synth' 60 build-gpu/tools/sluice synth --like mixtral-8x7b --layers 2 --quant q4_k -o "$model"; then
    for vram in 1500M 3G; do
        step "stream, $vram" 90 build-gpu/tools/sluice bench -m "$model" --device cuda:0 --vram "$vram" -p 256 -n 32 -r 2
        awk -F ' *[|] *' -v name="stream, $vram" '$7 ~ /^(pp|tg)[0-9]/ {
            print name ", " $7 "|" $8 " tok/s, bound " $9 " (" $10 ", " $11 "), forecast " $12 }' \
            "$out/$(log_of "stream, $vram")" >> "$table"
    done
fi
rm -f "$model"
finish
