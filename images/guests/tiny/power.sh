#!/bin/busybox sh
# Powers off when the ACPI power button is pressed.
for dir in /sys/class/input/event*; do
    case "$(cat "$dir/device/name" 2>/dev/null)" in
        "Power Button")
            # Opened before anybody hears that the guest is ready: what is pressed earlier is lost.
            exec 4<"/dev/input/${dir##*/}"
            # One event is 24 bytes: the first read returns when the button is pressed.
            { dd bs=24 count=1 of=/dev/null <&4 2>/dev/null
              echo "power button: powering off" >"$CONSOLE"
              sync
              poweroff -f; } &
            ;;
    esac
done
