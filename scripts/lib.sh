# Shared by the scripts of this folder: a Python 3.11+ and a virtual environment with what a profile needs.
# Not run by itself.

set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
PYTORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu" # the PyTorch project's own builds without CUDA

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in ${HUB_PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed and was not found. Install it, or name it in HUB_PYTHON."
}

has_nvidia() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; }

# torch first, since the right build depends on the machine: PyPI's Linux wheel brings gigabytes of CUDA.
install_torch() {
  local wanted="torch==2.13.0"
  if has_nvidia || [ "$(uname -s)-$(uname -m)" != "Linux-x86_64" ]; then
    say "Installing $wanted"
    "$VENV/bin/pip" install "$wanted"
    return
  fi
  say "Installing $wanted for the CPU (no NVIDIA driver was found)"
  "$VENV/bin/pip" install "$wanted+cpu" 2>/dev/null ||
    "$VENV/bin/pip" install "$wanted+cpu" --extra-index-url "$PYTORCH_CPU_INDEX" ||
    { say "No CPU build was found; taking the default one"; "$VENV/bin/pip" install "$wanted"; }
}

# setup_venv "" for running, "[dev]" for developing. Does nothing when it was done before for this pyproject.toml.
setup_venv() {
  local extras="$1" python stamp want
  stamp="$VENV/.hub-setup"
  want="$(cat "$ROOT/pyproject.toml" "$ROOT/scripts/lib.sh" | cksum)"
  if [ -f "$stamp" ] && grep -qxF "$want dev" "$stamp"; then return; fi
  if [ -z "$extras" ] && [ -f "$stamp" ] && grep -qxF "$want run" "$stamp"; then return; fi
  python="$(find_python)"
  if [ ! -x "$VENV/bin/python" ]; then
    say "Making .venv with $("$python" --version)"
    "$python" -m venv "$VENV" || { rm -rf "$VENV"; fail "venv failed. On Debian and Ubuntu: apt install python3-venv"; }
  fi
  "$VENV/bin/python" -c 'import torch' 2>/dev/null || install_torch
  say "Installing the hub and its libraries${extras:+ for development} (about 500 MB, once)"
  "$VENV/bin/pip" install --editable "$ROOT$extras"
  if [ -n "$extras" ]; then echo "$want dev" >"$stamp"; else echo "$want run" >"$stamp"; fi
  say "Set up"
}

# need_tool COMMAND PACKAGE: Debian's package is installed where the command is missing and this user may.
need_tool() {
  command -v "$1" >/dev/null 2>&1 && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    say "Installing $2 with apt-get"
    { apt-get update && apt-get install -y --no-install-recommends "$2"; } >&2 ||
      fail "apt-get could not install $2. Install it by hand."
    return
  fi
  fail "$1 is needed and was not found. Install it (Debian: apt install $2)."
}

# Prints the path of a Chromium: $CHROMIUM, or one on the PATH; else Debian's, installed where this user may.
find_chromium() {
  local candidate
  for candidate in "${CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    say "Installing Chromium with apt-get (about 300 MB, once)"
    { apt-get update && apt-get install -y --no-install-recommends chromium fonts-liberation; } >&2 ||
      fail "apt-get could not install chromium. Install it by hand, or name a Chromium in CHROMIUM."
    command -v chromium
    return
  fi
  fail "The browser tests need Chromium. Install it (Debian: apt install chromium), or name one in CHROMIUM."
}
