package daemon

import (
	"github.com/picosnitch/picosnitch/internal/config"
	"github.com/picosnitch/picosnitch/internal/recorder"
)

// settings is what the recorder needs of config.json. The recorder does not know the file.
func settings(c config.Config, owner uint32) recorder.Settings {
	return recorder.Settings{
		Remote: server(c),
		Limits: limits(c),

		SQLLog:       c.SQLLog,
		TextLog:      c.TextLog,
		TextJSON:     c.TextFormat == config.FormatJSON,
		TextLimit:    int64(c.TextLimit) << 20,
		RawDays:      c.RawDays,
		Days:         c.RetentionDays,
		SizeLimit:    int64(c.SizeLimit) << 20,
		WriteLimit:   int64(c.WriteLimit),
		LogAddresses: c.LogAddresses,
		LogCommands:  c.LogCommands,

		Desktop: c.Notifications,
		Command: c.Command,
		Owner:   owner,
		Journal: c.Journal,
		Feed:    c.Feed,

		VTKey:    recorder.Key(c.VTKey.Reveal()),
		VTURL:    c.VTURL,
		VTUpload: c.VTUpload,
		VTLimit:  c.VTLimit,

		IgnoreHashes:  c.LogIgnore.SHA256,
		IgnoreDomains: c.LogIgnore.Domains,
		IgnorePorts:   c.LogIgnore.Ports,

		NotifyIgnore: c.NotifyIgnore,
		NotifyDigest: int64(c.NotifyDigest),
	}
}

// server is the remote copy; nil: none.
func server(c config.Config) *recorder.RemoteSettings {
	if c.SQLServer.Client == "" {
		return nil
	}
	s := &recorder.RemoteSettings{Client: c.SQLServer.Client, Dialect: c.SQLServer.Dialect, Table: c.SQLServer.Table, Params: make(map[string]string), Limit: int64(c.SpoolLimit) << 20}
	for k, v := range c.SQLServer.Params {
		s.Params[k] = v.Reveal()
	}
	return s
}

func limits(c config.Config) []recorder.Limit {
	var all []recorder.Limit
	for _, l := range c.Limits {
		all = append(all, recorder.Limit{
			Programs: l.Programs, Bytes: l.Bytes, Text: l.Text, Per: l.Per, Starts: l.Starts, Interface: l.Interface, Direction: l.Direction, Local: l.LocalNetwork,
		})
	}
	return all
}
