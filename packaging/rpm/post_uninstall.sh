# $1: how many versions are installed after this.
if [ -x /usr/bin/systemctl ]; then
    systemctl daemon-reload || :
    # An upgrade: what runs goes on with the new version, and what does not run is left alone.
    if [ "$1" -ge 1 ]; then
        systemctl try-restart runwatch.service || :
        systemctl list-units --plain --no-legend 'user@*.service' |
            sed -n 's/^user@\([0-9]*\)\.service .*/\1/p' |
            while read -r user; do
                systemctl --user --machine "$user@" daemon-reload || :
                systemctl --user --machine "$user@" try-restart runwatch.service || :
            done
    fi
fi
# The package has files only, as cargo-generate-rpm makes it: their folders do not go with them.
if [ "$1" -eq 0 ]; then
    find /usr/share/doc/runwatch /etc/runwatch -depth -type d -empty -delete || :
fi
