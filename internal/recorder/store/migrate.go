package store

import (
	"context"
	"fmt"

	"github.com/picosnitch/picosnitch/internal/schema"
)

// migrate brings a database of an earlier version of ours up to date. It goes on where a kill interrupted it.
func (s *SQLite) migrate(ctx context.Context) error {
	var version int64
	if err := s.conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil || version == schema.Version {
		return err
	}
	steps, err := schema.Steps(version)
	if err != nil {
		return err
	}
	s.tell(fmt.Sprintf("%s is brought from version %d to %d", s.Name(), version, schema.Version), "what is recorded meanwhile waits; it goes on where it stopped if it is interrupted")
	for _, step := range steps {
		if err := s.step(ctx, step); err != nil {
			return fmt.Errorf("bring the database to version %d: %w", step.To, err)
		}
	}
	s.tell(fmt.Sprintf("%s is of version %d now", s.Name(), schema.Version), "")
	return nil
}

func (s *SQLite) step(ctx context.Context, step schema.Step) error {
	begun := int64(0)
	if s.conn.QueryRowContext(ctx, schema.Begun).Scan(&begun) != nil {
		if err := s.transaction(ctx, step.Before); err != nil {
			return err
		}
	} else if begun != step.To {
		return fmt.Errorf("the database is in the middle of another change, to version %d", begun)
	}
	for step.More != "" {
		var more bool
		if err := s.conn.QueryRowContext(ctx, step.More).Scan(&more); err != nil {
			return err
		}
		if !more {
			break
		}
		if err := s.transaction(ctx, step.Each); err != nil {
			return err
		}
	}
	return s.transaction(ctx, step.After)
}

// transaction runs statements, all or none.
func (s *SQLite) transaction(ctx context.Context, text string) error {
	err := s.exec(ctx, "BEGIN IMMEDIATE")
	if err != nil {
		return err
	}
	if err = s.exec(ctx, text); err == nil {
		err = s.exec(ctx, "COMMIT")
	}
	if err != nil {
		s.exec(context.WithoutCancel(ctx), "ROLLBACK")
	}
	return err
}
