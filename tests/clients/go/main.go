// Books as a customer does, with a client made of a release's contracts alone, and prints what the gateway answers.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	mypage "example.org/booking/gen/vaccination/mypage/v1"
	reservation "example.org/booking/gen/vaccination/reservation/v1"
)

type answer struct {
	Decided  string `json:"decided"`
	Repeated bool   `json:"repeated"`
	Screen   string `json:"screen"`
	Lot      string `json:"lot"`
	Refusal  string `json:"refusal"`
}

func main() {
	if err := book(os.Getenv("GATEWAY"), os.Getenv("TOKEN"), os.Getenv("HOSPITAL"), os.Getenv("DAY")); err != nil {
		log.Fatal(err)
	}
}

func book(gateway, token, hospital, day string) error {
	channel, err := grpc.NewClient(gateway, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer channel.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	reservations := reservation.NewReservationServiceClient(channel)

	request := &reservation.CreateReservationRequest{RequestId: requestID(), HospitalId: hospital, Date: day}
	made, err := reservations.CreateReservation(ctx, request)
	if err != nil {
		return err
	}
	again, err := reservations.CreateReservation(ctx, request)
	if err != nil {
		return err
	}
	id := made.GetReservation().GetReservationId()
	shown, err := completed(ctx, mypage.NewMypageServiceClient(channel), id)
	if err != nil {
		return err
	}
	request.HospitalId = "nowhere"
	request.RequestId = requestID()
	_, refused := reservations.CreateReservation(ctx, request)
	return json.NewEncoder(os.Stdout).Encode(answer{
		Decided:  made.GetReservation().GetStatus().String(),
		Repeated: again.GetReservation().GetReservationId() == id,
		Screen:   shown.GetStatus().String(),
		Lot:      shown.GetLotNumber(),
		Refusal:  reason(refused),
	})
}

// completed watches the customer's screen until the reservation has its dose.
func completed(ctx context.Context, screen mypage.MypageServiceClient, id string) (*mypage.MyReservation, error) {
	watch, err := screen.WatchMyReservations(ctx, &mypage.WatchMyReservationsRequest{})
	if err != nil {
		return nil, err
	}
	for {
		told, err := watch.Recv()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s was not completed", id), err)
		}
		for _, shown := range told.GetReservations() {
			if shown.GetReservationId() == id && shown.GetStatus() == reservation.ReservationStatus_RESERVATION_STATUS_COMPLETED {
				return shown, nil
			}
		}
	}
}

// reason is what a program acts on when a call is refused.
func reason(refused error) string {
	for _, detail := range status.Convert(refused).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// requestID is a random UUID: version 4, RFC 9562.
func requestID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // it never fails
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:])
}
