#!/usr/bin/env bash
# Every stage on one card in at most 8 minutes, without a network: results/gpu/<card>.json and a short table.
#
#   tests/gpu/check.sh                  # on a machine with a card, which may be bare: see README.md beside this
#   tests/gpu/check.sh --cpu FOLDER     # the same on a tiny random model, without a card; the record goes into FOLDER
#
# PYTHON names the interpreter, PARTS the folder of what was carried (work/gpu/parts): where that lies, an environment
# is made of it, once.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
parts=${PARTS:-work/gpu/parts}
built=work/gpu/environment
limit=480

refuse() { echo "not run: $*" >&2; exit 2; }

build() {  # an environment of the wheels, and of the machine's own torch where none is among them
    rm -rf "$built" work/gpu/unpacked
    mkdir -p work/gpu/unpacked
    (cd "$parts" && sha256sum --check --quiet SHA256SUMS) || refuse "a part of $parts is missing or damaged: carry it again"
    cat "$parts"/part-* | tar -x -C work/gpu/unpacked
    local wheels=work/gpu/unpacked/wheels pip torch=
    if ! ls "$wheels"/torch-*.whl > /dev/null 2>&1; then
        torch=$("$python" -c "import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])") ||
            refuse "$python has no torch, and none was packed: run tests/gpu/pack.py --torch"
    fi
    "$python" -m venv --without-pip "$built"
    pip=$(echo "$wheels"/pip-*.whl)  # it runs as it is, where the machine's Python came without
    "$built/bin/python" "$pip/pip" install --quiet --no-index --no-deps --no-compile "$wheels"/*.whl ||
        refuse "the wheels do not fit $("$python" --version): run tests/gpu/pack.py --python with its version"
    # Behind the wheels, and not by --system-site-packages: where $python is an environment itself, that would show the
    # packages of its parent.
    [ -z "$torch" ] || echo "$torch" > "$("$built/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")/torch.pth"
    rm -rf work/gpu/unpacked
    cp "$parts/SHA256SUMS" "$built/made-of"
}

if [ -f "$parts/SHA256SUMS" ]; then
    cmp -s "$parts/SHA256SUMS" "$built/made-of" || build
    python=$built/bin/python
elif [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then
    python=.venv/bin/python
fi
"$python" -c "import torch, trl, lm_eval" 2> /dev/null ||
    refuse "$python has not what the check imports: run make install, or carry work/gpu/parts (tests/gpu/README.md)"

case " $* " in
    *" --cpu "*) export CUDA_VISIBLE_DEVICES= ;;
    *) first=${CUDA_VISIBLE_DEVICES:-0}; export CUDA_VISIBLE_DEVICES=${first%%,*} ;;  # one card
esac
export PYTHONPATH=$PWD:$PWD/tests HF_HUB_OFFLINE=1 SDD_ENGINE=transformers TQDM_DISABLE=1
exec timeout --kill-after=10 $((limit - SECONDS)) "$python" -m gpu.run "$@"
