# Packages of Debian for tests that are skipped without them: COMMAND PACKAGE... installs what is missing.
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
from_debian() {
  command -v "$1" >/dev/null && return
  { as_root apt-get update -q && as_root apt-get install -qy --no-install-recommends "${@:2}"; } \
    || echo "$1 is not here and could not be installed (apt-get as root, with Debian's packages in" \
      "reach): the tests that need it are skipped" >&2
}
