"""One action of Helm 4, from the library that the PyPI package helm-sdkpy carries (Helm's own Go code).

usage: helm.py LIBRARY KUBECONFIG NAMESPACE ACTION RELEASE [ARGUMENT...]; prints what the action answers, as JSON.
"""
import ctypes
import sys

library, kubeconfig, namespace, action, release, *rest = sys.argv[1:]
helm = ctypes.CDLL(library)
helm.helm_sdkpy_last_error.restype = ctypes.c_char_p
handle, answer = ctypes.c_ulonglong(), ctypes.c_char_p()
texts = [text.encode() for text in rest]
name = release.encode()


def check(code):
    if code != 0:
        sys.exit(f"{action}: {helm.helm_sdkpy_last_error().decode()}")


check(helm.helm_sdkpy_config_create(namespace.encode(), kubeconfig.encode(), None, b"{}", ctypes.byref(handle)))
out = ctypes.byref(answer)
if action in ("install", "upgrade"):  # CHART VALUES OPTIONS
    chart, values, options = texts
    run = helm.helm_sdkpy_install if action == "install" else helm.helm_sdkpy_upgrade
    check(run(handle, name, chart, values, None, options, out))
elif action == "rollback":  # REVISION
    check(helm.helm_sdkpy_rollback(handle, name, int(rest[0]), out))
elif action == "uninstall":
    check(helm.helm_sdkpy_uninstall(handle, name, 1, 60, out))
elif action == "history":
    check(helm.helm_sdkpy_history(handle, name, out))
elif action == "list":
    check(helm.helm_sdkpy_list(handle, 1, out))
else:
    sys.exit(f"no such action: {action}")
print((answer.value or b"").decode())
