package schema

import (
	"errors"
	"testing"
)

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		app, version int64
		tables       int
		want         Kind
		err          error
	}{
		{0, 0, 0, Empty, nil},
		{ApplicationID, Version, 0, Empty, nil},
		{ApplicationID, Version, 5, Ours, nil},
		{ApplicationID, Version + 1, 5, Ours, ErrNewer},
		{ApplicationID, 3, 5, Foreign, ErrUnknown},
		{ApplicationID, Version - 1, 5, Outdated, nil},
		{ApplicationID, first, 5, Outdated, nil},
		{ApplicationID, first - 1, 5, Foreign, ErrUnknown},
		{ApplicationID, Version - 1, 0, Empty, nil},
		{0, 2, 1, Older, nil},
		{0, 100, 1, Foreign, nil},
		{0, 0, 1, Foreign, nil},
	} {
		got, err := Classify(c.app, c.version, c.tables)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%+v: %v %v", c, got, err)
		}
	}
}
