package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/daemon"
)

func systemdCommand(env Env) *cobra.Command {
	var printOnly bool
	c := &cobra.Command{
		Use:   "systemd",
		Short: "write a service for systemd",
		Long: `Writes /usr/lib/systemd/system/picosnitch.service (or $PICOSNITCH_UNIT) for this
binary and the folder of the user who calls sudo. Then:
systemctl enable --now picosnitch`,
		RunE: func(c *cobra.Command, _ []string) error {
			if !printOnly {
				if err := needRoot(env, c); err != nil {
					return err
				}
			}
			p, err := daemon.FindPlace(env.Getenv)
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			text := unit(exe, p, env.Getenv)
			if printOnly {
				_, err := fmt.Fprint(env.Stdout, text)
				return err
			}
			// The service may write only to folders that exist when it starts.
			folder, err := daemon.OpenFolder(p)
			if err != nil {
				return err
			}
			defer folder.Close()
			if _, err := folder.Config(); err != nil {
				return err
			}
			path := units(env)[0]
			if err := writeNew(path, text); err != nil {
				return err
			}
			fmt.Fprintf(env.Stdout, "wrote %s\n", path)
			if _, err := os.Stat("/run/systemd/system"); err == nil {
				if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
					return fmt.Errorf("systemctl daemon-reload: %w: %s", err, out)
				}
			}
			fmt.Fprintln(env.Stdout, "now run: systemctl enable --now picosnitch")
			return nil
		},
	}
	c.Flags().BoolVar(&printOnly, "print", false, "print the service file and write nothing")
	return c
}

// writeNew replaces path in one step.
func writeNew(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temp := path + ".new"
	os.Remove(temp)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// unit is the service file. Each line that takes something away was checked not to take away what picosnitch needs; each
// one that is missing has its reason.
func unit(exe string, p daemon.Place, getenv func(string) string) string {
	var env strings.Builder
	if p.Owner.UID != 0 {
		fmt.Fprintf(&env, "# Whose ~/.config/picosnitch it is.\nEnvironment=SUDO_UID=%d\n", p.Owner.UID)
	}
	for _, k := range []string{"PICOSNITCH_DIR", "PICOSNITCH_RUN_DIR"} {
		if v := getenv(k); v != "" {
			fmt.Fprintf(&env, "Environment=%s\n", quote(k+"="+v))
		}
	}
	r := strings.NewReplacer("@EXE@", quote(exe), "@ENV@", env.String(), "@DIR@", quote(p.Dir), "@RUN@", quote(p.RunDir))
	return r.Replace(`# Written by "picosnitch systemd".
[Unit]
Description=picosnitch: which program sends or receives which bytes, to whom
Documentation=https://github.com/picosnitch/picosnitch
After=local-fs.target
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart=@EXE@ start-no-daemon
# Opens conn.log and error.log again after logrotate(8) moved them.
ExecReload=/bin/kill -HUP $MAINPID
@ENV@Restart=on-failure
RestartSec=5
# Ever later, up to a minute (systemd 254 and later), and after five times in five minutes not at all: a crash loop costs nothing.
RestartSteps=4
RestartMaxDelaySec=60
# Config wrong, already running, kernel not supported, not root: trying again does not help. It may where the folder cannot be written (6).
RestartPreventExitStatus=2 3 4 5
# The kernel's verifier takes a second or two, and where it refuses one hook set after the other on a slow machine that boots, minutes.
TimeoutStartSec=300
TimeoutStopSec=30
# Only the sensor is asked to stop: the recorder ends with the stream, behind its last window.
KillMode=mixed
# Under pressure the log goes last.
OOMScoreAdjust=-500

# What the sensor needs: BPF programs and the tracepoints (BPF, PERFMON, NET_ADMIN for cgroup hooks, SYS_ADMIN for
# iterators and the recorder's mounts), memory and descriptors (SYS_RESOURCE), other users' programs (SYS_PTRACE,
# DAC_READ_SEARCH), the folder (DAC_OVERRIDE, CHOWN, FOWNER, FSETID), to start the recorder without any of these (SETUID,
# SETGID, SETPCAP), and to end it (KILL).
CapabilityBoundingSet=CAP_BPF CAP_PERFMON CAP_NET_ADMIN CAP_SYS_ADMIN CAP_SYS_RESOURCE CAP_SYS_PTRACE CAP_DAC_READ_SEARCH CAP_DAC_OVERRIDE CAP_CHOWN CAP_FOWNER CAP_FSETID CAP_SETUID CAP_SETGID CAP_SETPCAP CAP_KILL
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=@DIR@ @RUN@
# Where kprobes are the best hooks (7.x), the returns of many waiting calls can be asked for in this file only, which ProtectKernelTunables= makes
# read-only with all of tracefs; it does not give way to the same path here, but to one below.
ReadWritePaths=-/sys/kernel/tracing/kprobe_events
UMask=0027
LimitCORE=0
LockPersonality=yes
MemoryDenyWriteExecute=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictRealtime=yes
RestrictNamespaces=mnt net
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap
KeyringMode=private
# Not set, and why: PrivateTmp, ProtectHome and ProtectProc would hide programs that are to be hashed; PrivateNetwork and
# IPAddressDeny would break the self test; RestrictSUIDSGID would refuse the folder's setgid bit, which lets the user's
# group read the log; ProtectKernelLogs takes away the symbols that the fexit hook set looks up.

[Install]
WantedBy=multi-user.target
`)
}

// quote writes a word for systemd.syntax(7): % and $ have a meaning there.
func quote(s string) string {
	r := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$", "\n", `\n`)
	if q := r.Replace(s); q != s || strings.ContainsAny(s, " \t'") {
		return `"` + q + `"`
	}
	return s
}
