# Sourced by the other scripts. `environment EXTRA` makes .demo/EXTRA, a virtual environment with this package and that
# extra, unless it is there and pyproject.toml has not changed since; $python is its interpreter then.
# PYTHON names the one to make it with.

environment() {
    local directory=.demo/$1 stamp
    stamp=$(cksum pyproject.toml)
    mkdir -p .demo
    exec 9> ".demo/$1.lock"  # another script may be making it
    if command -v flock > /dev/null; then flock 9; fi
    if [ ! -x "$directory/bin/python" ] || [ "$(cat "$directory/stamp" 2>/dev/null)" != "$stamp" ]; then
        echo "Making $directory with everything that this needs; it takes a few minutes the first time ..."
        "${PYTHON:-python3}" -m venv --clear "$directory"
        "$directory/bin/python" -m pip install -qq --upgrade pip
        "$directory/bin/python" -m pip install -qq --editable ".[$1]"
        echo "$stamp" > "$directory/stamp"
    fi
    exec 9>&-
    python=$directory/bin/python
}
