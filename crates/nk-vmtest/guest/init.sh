#!/bin/busybox sh
# The guest's first process. Results are lines "NK name ok|FAIL detail" on the console; the last line is "NK end".
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
PATH=/bin

value() { tr ' ' '\n' < /proc/cmdline | sed -n "s/^nk\.$1=//p"; }
result() { # name, exit status, detail
	if [ "$2" = 0 ]; then echo "NK $1 ok $3"; return; fi
	echo "NK $1 FAIL status $2: $3"
	# What follows would only wait for its time-outs.
	dmesg | tail -n 30
	poweroff -f
}
run() { # name, command...
	name=$1
	shift
	said=$(timeout 30 "$@" 2>&1)
	result "$name" $? "$said"
}

address=$(value address)
port=$(value port)
closed=$(value closed)
bytes=$(value bytes)
many=$(value many)

# Only the loopback interface, and it is down: without the module nothing can be reached.
interfaces=$(ls /sys/class/net | tr '\n' ' ')
[ "$interfaces" = "lo " ]
result no-nic $? "interfaces: $interfaces"
said=$(timeout 5 nc "$address" "$port" < /dev/null 2>&1)
[ $? = 1 ]
result unreachable-before $? "$said"

run insmod insmod /netkernel.ko

said=$(echo "hello from a virtual machine" | timeout 10 nc "$address" "$port" 2>&1)
[ "$said" = "hello from a virtual machine" ]
result nc $? "$said"
run echo-static /echo-static "$address" "$port" "$bytes" blocking
run echo-dynamic /echo-dynamic "$address" "$port" "$bytes" nonblocking
run refused /echo-static "$address" "$closed" 0 refused
run many /echo-static "$address" "$port" "$many" many

# A server in the guest; the host connects when it reads the port on the console.
said=$(timeout 30 /serve "$address" 2> /dev/console)
result serve $? "$said"

# A socket in use holds the module.
sleep 30 | nc "$address" "$port" > /dev/null &
sleep 0.3
rmmod netkernel 2> /dev/null
[ $? != 0 ] && grep -q '^netkernel [0-9]* [1-9]' /proc/modules
result held $? "$(grep '^netkernel' /proc/modules)"
killall nc sleep 2> /dev/null
sleep 0.3

run rmmod rmmod netkernel
said=$(timeout 5 nc "$address" "$port" < /dev/null 2>&1)
[ $? = 1 ]
result unreachable-after $? "$said"

# Unloading left nothing behind that a second life of the module trips over.
run insmod-again insmod /netkernel.ko
run echo-again /echo-static "$address" "$port" "$bytes" nonblocking
run rmmod-again rmmod netkernel

said=$(dmesg | grep -E 'BUG|WARNING|Oops|Call Trace|netkernel: .*(cannot|broken|no usable)')
[ -z "$said" ]
result kernel-log $? "$said"
echo "NK end"
poweroff -f
