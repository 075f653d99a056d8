# The Debian packages that a task needs and this machine lacks. Sourced, not run.
# shellcheck shell=bash

# install_missing PACKAGE...: installs those that are not there, and says nothing if none is missing.
install_missing() {
  local missing=()
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  echo "installing ${missing[*]}"
  local sudo=()
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  "${sudo[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# What building takes: a C compiler for the crypto library, protoc for the wire contracts, netlink headers.
BUILD_PACKAGES=(build-essential cmake pkg-config protobuf-compiler libprotobuf-dev libnftnl-dev libmnl-dev)
# What a node takes.
NODE_PACKAGES=(containerd runc containernetworking-plugins nftables iproute2)
# What tests compare with and look with.
TEST_PACKAGES=(etcd-client etcd-server conntrack curl qemu-system-x86 busybox-static cpio e2fsprogs
  python3-grpcio python3-kubernetes protobuf-compiler-grpc python3-pip)

# fetch_vm_kernel: Debian's cloud kernel for the virtual machines of tests, unpacked in the cache and not installed.
fetch_vm_kernel() {
  local cache="${XDG_CACHE_HOME:-$HOME/.cache}/ironclad-vm" package
  [ -d "$cache/lib/modules" ] && return 0
  package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ {print $2; exit}')
  echo "fetching $package"
  local dir; dir=$(mktemp -d)
  (cd "$dir" && apt-get download -qq "$package" && dpkg -x ./*.deb unpacked)
  rm -rf "$cache" && mkdir -p "$cache" && cp -a "$dir/unpacked/boot" "$dir/unpacked/lib" "$cache/"
  rm -rf "$dir"
}

# fetch_helm: Helm 4 as a library, from the PyPI package that carries it, in the cache. Its Python wants 3.12 and is not used.
fetch_helm() {
  local cache="${XDG_CACHE_HOME:-$HOME/.cache}/ironclad-helm"
  [ -f "$cache/libhelm_sdkpy.so" ] && return 0
  echo "fetching Helm"
  local dir; dir=$(mktemp -d)
  /usr/bin/python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 -d "$dir" helm-sdkpy==0.1.32 &&
    /usr/bin/python3 -m zipfile -e "$dir"/*.whl "$dir/unpacked" &&
    mkdir -p "$cache" && mv "$dir/unpacked/helm_sdkpy/_lib/linux-amd64/libhelm_sdkpy.so" "$cache/"
  local end=$?
  rm -rf "$dir"
  return $end
}
