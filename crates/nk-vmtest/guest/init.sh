#!/bin/sh
# The guest's first process. Results are lines "NK name ok|FAIL detail" on the console; the last line is "NK end".
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
PATH=/bin

value() { tr ' ' '\n' < /proc/cmdline | sed -n "s/^nk\.$1=//p"; }
result() { # name, exit status, detail
	if [ "$2" = 0 ]; then echo "NK $1 ok $3"; else echo "NK $1 FAIL status $2: $3"; fi
}

address=$(value address)
port=$(value port)

# Only the loopback interface, and it is down: without the module nothing can be reached.
interfaces=$(ls /sys/class/net | tr '\n' ' ')
[ "$interfaces" = "lo " ]
result no-nic $? "interfaces: $interfaces"
said=$(timeout 5 nc "$address" "$port" < /dev/null 2>&1)
[ $? = 1 ]
result unreachable-before $? "$said"

insmod /netkernel.ko
result insmod $?
