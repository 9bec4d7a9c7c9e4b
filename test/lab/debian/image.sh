# Sourced by recipes that make Debian images: mounts an image, enters its root for packages, leaves it, closes it.
# Expects $root (where the root is or gets mounted); environment: APT_CONF (file), CA_BUNDLE (file), both optional.
# A recipe runs in mount and pid namespaces of its own, so nothing here cleans up after a failure.
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin

step() { printf '%s %s\n' "$(date +%T)" "$1" >&2; }

mount_image() { # IMAGE
  mkdir -p "$root"
  # Nothing here must survive a power cut: barriers would only make dpkg slow.
  mount -o loop,noatime,nobarrier,commit=600 "$1" "$root"
}

enter() { # mounts what a chroot needs; all of it is private to our mount namespace
  mount -t proc proc "$root/proc"
  mount -t sysfs -o ro sysfs "$root/sys"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs tmpfs "$root/run"
  mount -t tmpfs tmpfs "$root/tmp"
  printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
  chmod 755 "$root/usr/sbin/policy-rc.d"
  echo force-unsafe-io > "$root/etc/dpkg/dpkg.cfg.d/90unsafe-io"
  cp /etc/resolv.conf "$root/run/resolv.conf"
  ln -sf /run/resolv.conf "$root/etc/resolv.conf"
  {
    cat "${APT_CONF:-/dev/null}"
    if [ -s "${CA_BUNDLE:-}" ]; then
      cp "$CA_BUNDLE" "$root/run/ca.crt"
      echo 'Acquire::https::CaInfo "/run/ca.crt";'
    fi
    echo 'APT::Install-Recommends "false"; Acquire::Languages "none"; Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";'
  } > "$root/etc/apt/apt.conf.d/99lab"
}

leave() {
  rm -f "$root/usr/sbin/policy-rc.d" "$root/etc/dpkg/dpkg.cfg.d/90unsafe-io" "$root/etc/apt/apt.conf.d/99lab"
  for place in tmp run dev sys proc; do umount -R "$root/$place"; done
}

close_image() { # IMAGE [E2FSCK OPTION ...]
  umount "$root"
  local image=$1
  shift
  e2fsck -fp "$@" "$image" >&2 || [ $? -le 1 ] # 1: it mended something, such as an orphan
  fallocate --dig-holes "$image"
}
