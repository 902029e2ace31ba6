# $1: how many versions are installed after this.
if [ "$1" -eq 0 ] && [ -x /usr/bin/systemctl ]; then
    systemctl --no-reload disable --now runwatch.service || :
    systemctl --global disable runwatch.service || :
    # The daemons of people who are logged in must not go on without their program.
    systemctl list-units --plain --no-legend 'user@*.service' |
        sed -n 's/^user@\([0-9]*\)\.service .*/\1/p' |
        while read -r user; do
            systemctl --user --machine "$user@" stop runwatch.service || :
        done
fi
