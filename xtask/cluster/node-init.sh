# The first process of a node: gives the new mount namespace what a machine of its own has, and becomes `pause`.
# What a node writes stays in its own directory and in memory: nothing of it is left on the host when the node ends.
#
# $1 the node's name   $2 its directory   $3 the cluster's directory   $4 the cache   $5 the pause executable
set -eu
name=$1 node=$2 dir=$3 cache=$4 pause=$5

mount --make-rprivate /
mount -t proc proc /proc
hostname "$name"

# These two stay what they are on the host, wherever they are; open now, because what comes next may hide them.
exec 3<"$dir" 4<"$cache"

mkdir -p "$node/containerd" "$node/kubelet" "$node/pods" "$node/kubevirt" "$node/tmp" "$node/upper"
chmod 1777 "$node/tmp"
exec 5<"$node"

# A private /etc, /opt and /var that begin as the host's.
mount -t tmpfs -o mode=755 tmpfs "$node/upper"
for top in etc opt var; do
  mkdir "$node/upper/$top" "$node/upper/.$top"
  chmod 755 "$node/upper/$top"
done
for top in etc opt var; do
  mount -t overlay -o "lowerdir=/$top,upperdir=$node/upper/$top,workdir=$node/upper/.$top" overlay "/$top"
done
mount -t tmpfs -o mode=755 tmpfs /run
mount --no-canonicalize --bind /proc/self/fd/5/tmp /tmp
mkdir -p /run/lock "$dir" "$cache"
mount --no-canonicalize --bind /proc/self/fd/3 "$dir"
mount --no-canonicalize --bind /proc/self/fd/4 "$cache"

# Disk, not memory, for what grows.
own() {
  mkdir -p "$2"
  mount --bind "$node/$1" "$2"
}
own containerd /var/lib/containerd
own kubelet /var/lib/kubelet
own kubevirt /var/lib/kubevirt
own pods /var/log/pods
mkdir -p /var/log/containers /var/lib/cni

rm -f /etc/hosts /etc/resolv.conf
cp "$node/hosts" /etc/hosts
cp "$node/resolv.conf" /etc/resolv.conf
echo "$name" > /etc/hostname
rm -f /etc/machine-id
tr -d - < /proc/sys/kernel/random/uuid > /etc/machine-id

# kubelet insists on writing these, which belong to the host: it gets files of its own.
while read -r key value; do
  [ -e "/proc/sys/$key" ] || continue
  file=/run/sysctl-$(echo "$key" | tr / -)
  echo "$value" > "$file"
  mount --bind "$file" "/proc/sys/$key"
done <<KEYS
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
KEYS

# Pods with user namespaces may mount a procfs only where one can be seen that nothing covers.
mkdir /run/proc
mount -t proc proc /run/proc

echo 1 > /proc/sys/net/ipv4/ip_forward
for interface in all default eth0; do echo 0 > "/proc/sys/net/ipv4/conf/$interface/send_redirects"; done

# Volumes that a container mounts show on the node, and the other way round.
mount --make-rshared /
: > "$node/ready"
cd /
exec "$pause" 3<&- 4<&- 5<&-
