#!/usr/bin/env bash
# Guess: hf_hub_download goes on where a killed process stopped: the second call asks for the rest (Range).
# Versions: huggingface_hub 2.4.0, against a server on loopback that answers the hub's requests and Range.
# Came: the second process asks for the whole file again. The first one's partial file stays in the cache
#   beside the finished blob, under a name that no later call looks for.
# Matters: a checkpoint's shard of 5 to 50 GB starts anew after every interruption, and each leaves its part on
#   the disk; who needs resume across processes must keep the partial file himself.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q huggingface_hub==2.4.0 2>/dev/null
cat >hub.py <<'PY'
import hashlib, http.server, os, signal, subprocess, sys, threading, time, pathlib

DATA = bytes(range(256)) * 4 * 4096 * 20  # 80 MiB
SHA, COMMIT = hashlib.sha256(DATA).hexdigest(), "0123456789abcdef0123456789abcdef01234567"
asked, sent = [], [0]

class Hub(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def answer(self, body):
        if "/resolve/" not in self.path:
            self.send_response(404); self.send_header("Content-Length", "0"); self.end_headers(); return
        found = self.headers.get("Range")
        begin = int(found.removeprefix("bytes=").split("-")[0]) if found else 0
        self.send_response(206 if found else 200)
        for name, value in {
            "X-Repo-Commit": COMMIT, "ETag": f'"{SHA}"', "X-Linked-ETag": f'"{SHA}"', "Accept-Ranges": "bytes",
            "X-Linked-Size": len(DATA), "Content-Length": len(DATA) - begin,
            **({"Content-Range": f"bytes {begin}-{len(DATA) - 1}/{len(DATA)}"} if found else {}),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if not body: return
        asked.append(found)
        try:
            for at in range(begin, len(DATA), 1 << 20):
                self.wfile.write(DATA[at : at + (1 << 20)]); sent[0] += 1
                if len(asked) == 1: time.sleep(0.1)
        except OSError:
            pass
    def do_GET(self): self.answer(True)
    def do_HEAD(self): self.answer(False)

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
environment = {
    **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": "home",
    "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
get = [sys.executable, "-c", "from huggingface_hub import hf_hub_download as g; print(g('a/b', 'w.bin'))"]
first = subprocess.Popen(get, env=environment)
while sent[0] < 40: time.sleep(0.05)
first.send_signal(signal.SIGKILL); first.wait()
parts = list(pathlib.Path("home").rglob("*.incomplete"))
kept = sum(p.stat().st_size for p in parts)
second = subprocess.run(get, env=environment, capture_output=True, text=True)
assert second.returncode == 0, second.stderr
assert hashlib.sha256(pathlib.Path(second.stdout.strip()).read_bytes()).hexdigest() == SHA
left = len(list(pathlib.Path("home").rglob("*.incomplete")))
print(f"a killed process left {len(parts)} partial file of {'over 20' if kept > 20 << 20 else kept >> 20} MiB")
print(f"Range of the first request: {asked[0]}, of the second process: {asked[1:]}; partial files left: {left}")
assert kept > 20 << 20 and asked == [None, None] and left == 1, (kept, asked, left)
PY
venv/bin/python hub.py
# Output seen:
# a killed process left 1 partial file of over 20 MiB
# Range of the first request: None, of the second process: [None]; partial files left: 1
