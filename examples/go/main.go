// Consumer prints each message of a subscription and acks it.
//
// It keeps the rules of a client (README, "A client in another language"), whose numbers stand where they are kept.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	ackstream "example.org/consumer/gen/ackstream/v1"
)

// window is how many messages may be outstanding here; the rest is for other consumers.
const window = 100

func main() {
	target := flag.String("target", "localhost:50051", "the server")
	topic := flag.String("topic", "demo", "the topic")
	subscription := flag.String("subscription", "demo", "the subscription")
	count := flag.Int("count", 0, "leave after so many messages; 0 = go on")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	conn, err := grpc.NewClient(*target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20)), // a message may have 16 MiB, a frame more
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	c := consumer{
		client: ackstream.NewMessageStreamClient(conn),
		open:   &ackstream.Open{Topic: *topic, Subscription: *subscription, MaxOutstandingMessages: window, ClientId: "go"},
		count:  *count,
		handle: func(message *ackstream.DataMessage) { fmt.Printf("%s\n", message.Payload) },
	}
	if err := c.run(ctx); err != nil {
		log.Fatal(err)
	}
}

// consumer consumes one subscription over as many streams as it takes.
type consumer struct {
	client ackstream.MessageStreamClient
	open   *ackstream.Open
	handle func(*ackstream.DataMessage)
	count  int             // it leaves after so many messages; 0 = without end
	taken  int             // messages that were given to handle
	acked  int             // and those of them that are done
	epoch  uint64          // names one life of the topic's ids
	done   map[uint64]bool // handled in this epoch; a program that runs for long keeps the last of them only
}

// run returns nil when there is nothing more to come, and an error that no retry helps.
func (c *consumer) run(ctx context.Context) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		opened, err := c.consume(ctx)
		switch status.Code(err) { // rule 6: how the stream ends says what to do
		case codes.OK:
			return nil
		case codes.InvalidArgument, codes.NotFound, codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented:
			return err
		}
		if opened {
			wait = 100 * time.Millisecond
		}
		log.Printf("the stream broke (%v): connecting again", err)
		select {
		case <-time.After(rand.N(wait)):
		case <-ctx.Done():
			return nil
		}
	}
}

// consume holds one conversation, and says whether it was opened and how it ended.
func (c *consumer) consume(ctx context.Context) (bool, error) {
	// The stream outlives ctx: who is told to stop still says good-bye (rule 8).
	streamCtx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := c.client.Exchange(streamCtx)
	if err != nil {
		return false, err
	}
	// Rule 1: `open` first, then wait for `opened`.
	if err := stream.Send(&ackstream.StreamMessage{Kind: &ackstream.StreamMessage_Open{Open: c.open}}); err != nil && err != io.EOF {
		return false, err
	}
	first, err := stream.Recv()
	if err != nil {
		return false, err
	}
	opened := first.GetOpened()
	if opened == nil {
		return false, status.Error(codes.Unimplemented, "this is no ackstream server")
	}
	// Rule 5: in another epoch, ids are other messages'.
	if opened.Epoch != c.epoch {
		c.epoch, c.done = opened.Epoch, map[uint64]bool{}
	}

	delivered, ended := make(chan *ackstream.DataMessage, window), make(chan error, 1)
	go read(streamCtx, stream, delivered, ended) // rule 2: always
	queue, handled := make(chan *ackstream.DataMessage, window), make(chan uint64, window)
	defer close(queue)
	go func() {
		for message := range queue {
			c.handle(message)
			handled <- message.Id
		}
	}()

	held := map[uint64]bool{} // what waits for its turn, or is being handled
	c.taken = c.acked         // what a broken stream left unfinished comes again
	extend := time.NewTicker(opened.AckDeadline.AsDuration() / 3)
	defer extend.Stop()
	for {
		select {
		case message := <-delivered:
			switch {
			case c.done[message.Id]: // rule 3: it came again; its ack was lost
				_ = stream.Send(ack(message.Id))
			case held[message.Id]:
			case c.count > 0 && c.taken == c.count:
				held[message.Id] = true // for others: kept from expiring until this stream ends
			default:
				c.taken++
				held[message.Id] = true
				queue <- message
			}
		case id := <-handled:
			delete(held, id)
			c.done[id] = true
			_ = stream.Send(ack(id)) // how the stream ended is read, not what a write met
			if c.acked++; c.acked == c.count {
				return true, leave(stream, ended)
			}
		case <-extend.C: // rule 4: what takes longer than the deadline
			if ids := keys(held); len(ids) > 0 {
				batch := &ackstream.ExtendBatch{AckIds: ids}
				_ = stream.Send(&ackstream.StreamMessage{Kind: &ackstream.StreamMessage_ExtendBatch{ExtendBatch: batch}})
			}
		case <-ctx.Done():
			return true, leave(stream, ended)
		case err := <-ended:
			return true, err
		}
	}
}

// read reads to the end, whatever else goes on. Members that it does not know are ignored (rule 10). There is always room for a
// delivery: no more than window are outstanding, and each is in one of the channels.
func read(ctx context.Context, stream ackstream.MessageStream_ExchangeClient, delivered chan<- *ackstream.DataMessage, ended chan<- error) {
	for {
		frame, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			err = nil // OK: the server has finished
		}
		if err != nil || frame == nil {
			ended <- err
			return
		}
		if message := frame.GetData(); message != nil {
			select {
			case delivered <- message:
			case <-ctx.Done():
				return
			}
		}
	}
}

// leave half-closes and waits for the end (rule 8), so that what is held goes to others at no cost.
func leave(stream ackstream.MessageStream_ExchangeClient, ended <-chan error) error {
	if err := stream.CloseSend(); err != nil {
		return err
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
	}
	return nil
}

func ack(id uint64) *ackstream.StreamMessage {
	return &ackstream.StreamMessage{Kind: &ackstream.StreamMessage_Ack{Ack: &ackstream.AckMessage{AckId: id}}}
}

func keys(set map[uint64]bool) []uint64 {
	ids := make([]uint64, 0, len(set))
	for id := range set {
		ids = append(ids, id)
	}
	return ids
}
