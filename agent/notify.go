package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// Notifications are told of what happens to backups: each is a line of the log, and
// goes to a webhook if there is one. They have the names and the payload of Cinder's.
const (
	eventCreateStart  = "backup.create.start"
	eventCreateEnd    = "backup.create.end"
	eventProgress     = "backup.createprogress"
	eventRestoreStart = "backup.restore.start"
	eventRestoreEnd   = "backup.restore.end"
	eventDeleteStart  = "backup.delete.start"
	eventDeleteEnd    = "backup.delete.end"
)

const (
	notifyQueue   = 1000 // notifications that wait for the webhook; more are dropped and counted
	notifyTries   = 4
	notifyPause   = time.Second // before the second try, doubled for each further one
	notifyTimeout = 10 * time.Second
)

// Notification is what a webhook gets, as JSON in a POST.
type Notification struct {
	ID        string         `json:"message_id"`
	Type      string         `json:"event_type"`
	Publisher string         `json:"publisher_id"`
	Priority  string         `json:"priority"` // INFO or ERROR
	Time      time.Time      `json:"timestamp"`
	Payload   map[string]any `json:"payload"`
}

// notifier tells what happens.
type notifier struct {
	log     *slog.Logger
	host    string
	webhook string // URL; empty = none
	http    *http.Client
	queue   chan Notification
	dropped atomic.Int64
}

func newNotifier(log *slog.Logger, host, webhook string) *notifier {
	return &notifier{log: log, host: host, webhook: webhook, queue: make(chan Notification, notifyQueue), http: &http.Client{Timeout: notifyTimeout}}
}

// tell says that something happened to a backup. It never waits.
func (n *notifier) tell(ctx context.Context, event string, b Backup, more map[string]any) {
	payload := map[string]any{
		"tenant_id": b.Project, "user_id": b.User, "backup_id": b.ID, "host": n.host, "display_name": b.Name, "created_at": b.Created,
		"status": b.Status, "volume_id": b.VolumeID, "snapshot_id": b.SnapshotID, "size": gib(b.Size), "parent_id": b.Parent, "fail_reason": b.FailReason,
	}
	maps.Copy(payload, more)
	x := Notification{ID: uuid.NewString(), Type: event, Publisher: "backup." + n.host, Priority: "INFO", Time: time.Now().UTC(), Payload: payload}
	if b.FailReason != "" {
		x.Priority = "ERROR"
	}
	n.log.LogAttrs(ctx, slog.LevelInfo, "notification", slog.String("event", event), slog.Any("payload", payload))
	if n.webhook == "" {
		return
	}
	select {
	case n.queue <- x:
	default:
		n.dropped.Add(1)
	}
}

// run sends what was told to the webhook, in order, until ctx ends.
func (n *notifier) run(ctx context.Context) {
	if n.webhook == "" {
		return
	}
	for {
		select {
		case <-ctx.Done():
			if lost := int64(len(n.queue)) + n.dropped.Load(); lost > 0 {
				n.log.LogAttrs(ctx, slog.LevelWarn, "notifications not delivered, as the agent stops", slog.Int64("count", lost))
			}
			return
		case x := <-n.queue:
			if err := n.send(ctx, x); err != nil && ctx.Err() == nil {
				n.log.LogAttrs(ctx, slog.LevelWarn, "notification not delivered", slog.String("event", x.Type), slog.String("id", x.ID), slog.Any("error", err))
			}
		}
		if lost := n.dropped.Swap(0); lost > 0 {
			n.log.LogAttrs(ctx, slog.LevelWarn, "notifications dropped, as the webhook is too slow", slog.Int64("count", lost))
		}
	}
}

// send posts one notification. What the webhook refuses is not tried again, unless it
// says that it is too busy.
func (n *notifier) send(ctx context.Context, x Notification) error {
	body, err := json.Marshal(x)
	if err != nil {
		return fmt.Errorf("notification: %w", err)
	}
	wait := notifyPause
	for try := 1; ; try++ {
		again, serr := n.post(ctx, body)
		if serr == nil || !again || try == notifyTries || !pause(ctx, wait) {
			return serr
		}
		wait *= 2
	}
}

func (n *notifier) post(ctx context.Context, body []byte) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.webhook, bytes.NewReader(body))
	if err != nil {
		return false, fmt.Errorf("webhook: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := n.http.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the address, which may hold a secret
		}
		return true, fmt.Errorf("webhook: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.CopyN(io.Discard, resp.Body, 4096) // so that the connection serves again
	if resp.StatusCode/100 == 2 {
		return false, nil
	}
	busy := resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode/100 == 5
	return busy, fmt.Errorf("the webhook answered %s", resp.Status)
}

// CheckWebhook refuses what is no address for notifications.
func CheckWebhook(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return refuse(CodeInvalid, "the webhook has no address of the form http://HOST/PATH or https://HOST/PATH")
	}
	return nil
}

// tell says that something happened to a backup of this repository.
func (s *server) tell(ctx context.Context, event string, b Backup, more map[string]any) {
	s.hub.notify.tell(ctx, event, b, more)
}
