"""What keeps poses human: critics and the terms of the policy's loss."""
