import time, json
def test_x(cli, llama, contrast, artefact, here):
    log=open('/tmp/w/log','w')
    for words in (
        ("discover", contrast, "--model", llama),
        ("discover", contrast, "--model", llama, "--json"),
        ("list", "loud-quiet.persona"),
        ("list", "loud-quiet.persona", "--json"),
        ("eval", contrast, "loud-quiet.persona", "--model", llama),
        ("chat", "loud-quiet.persona", "--model", llama, "-p", "loud", "--message", "Hello?", "--max-new-tokens", 8),
        ("discover", contrast, "--model", llama, "--cross-fit", 5),
        ("discover", contrast, "--model", llama, "--isolated", "--sparsity", 0.5),
        ("discover", contrast, "--model", llama, "--method", "wanda", "--n-m", "2:4"),
        ("doctor",), ("list",), ("eval", contrast, artefact, "--model", llama, "--seed", "-1"),
        ("chat", artefact, "--model", llama, "-p", "lod", "--message", "Hello?", "--max-new-tokens", 8),
        ("chat", artefact, "--model", llama, "--message", "Hello \udcff?", "--max-new-tokens", 8),
    ):
        t = time.time()
        try:
            r = cli(*words)
        except BaseException as e:
            print(file=log,*[words, 'RAISED', repr(e)[:500]]); continue
        print(file=log,*["=====", words, r.code, round(time.time()-t,2)]); print(file=log,*[r.out[:3000]]); print(file=log,*["--err"]); print(file=log,*[r.err[:2500]])
    assert 0
