# $1: how many versions are installed after this.
# As is the habit of systems with RPM: what is enabled is a matter of the presets of the system, and nothing is started.
if [ -x /usr/bin/systemctl ]; then
    systemctl daemon-reload || :
    if [ "$1" -eq 1 ]; then
        systemctl --no-reload preset runwatch.service || :
        systemctl --global preset runwatch.service || :
    fi
fi
